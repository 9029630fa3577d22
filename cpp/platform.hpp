// Everything that depends on the compiler or the processor. For GCC and Clang, including clang-cl. Three other files
// use functions of the compiler: rules/maths.hpp of the public headers, cache.hpp, and transpose.cpp, which can do without.
#pragma once

#include <cfenv>
#include <cfloat>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <emmintrin.h>
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(__GNUC__) && !defined(__clang__)
#error "fusedstep is written for GCC and Clang: on Windows use clang-cl or MinGW-w64"
#endif
static_assert(FLT_EVAL_METHOD == 0, "fusedstep is exact to the bit: float and double must be computed as what they are");

#define FUSEDSTEP_INLINE [[gnu::always_inline]] inline
#define FUSEDSTEP_NOINLINE [[gnu::noinline]]

// A function for AVX-512 whose vectors have half of its width. Clang has no such attribute.
#if defined(__AVX512F__) && !defined(__clang__)
#define FUSEDSTEP_HALF_WIDTH [[gnu::target("prefer-vector-width=256")]]
#endif

namespace fusedstep {

// A loop over narrow and wide numbers may widen the narrow ones itself, a group at a time. Left to itself, GCC takes as many
// elements at a time as a vector has narrow ones. On AVX2 these are 32 bytes or 16 halves, and the loop spends much of its
// time on packing and on registers that were spilled to memory.
#if defined(__AVX512BW__)
inline constexpr std::int64_t group = 16;
#else
inline constexpr std::int64_t group = 8;
#endif

// A loop over a group that stays a loop until it is vectorised. GCC may unroll it first, and then miss some of its vectors.
#if defined(__clang__)
#define FUSEDSTEP_EACH_OF_GROUP(i) for (std::int64_t i = 0; i < group; ++i)
#else
#define FUSEDSTEP_EACH_OF_GROUP(i) _Pragma("GCC unroll 1") for (std::int64_t i = 0; i < group; ++i)
#endif

#if defined(__AVX512BW__) && !defined(__clang__)
inline constexpr bool widens_groups = true;
inline constexpr __mmask16 all = 0xFFFF;  // GCC 12 warns of variables in its functions without a mask
FUSEDSTEP_INLINE void widen_group(const std::int8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_si512(to, _mm512_maskz_cvtepi8_epi32(all, bytes));
}
FUSEDSTEP_INLINE void narrow_group(const std::int32_t* from, std::int8_t* to) {
  const __m512i words = _mm512_loadu_si512(from);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(all, words));
}
// The same for halves that are the upper ones of 32 bits.
FUSEDSTEP_INLINE void widen_group(const std::uint16_t* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_si512(to, _mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, halves), 16));
}
FUSEDSTEP_INLINE void narrow_group(const std::uint32_t* from, std::uint16_t* to) {
  const __m512i upper = _mm512_maskz_srli_epi32(all, _mm512_loadu_si512(from), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(all, upper));
}
#elif defined(__AVX2__) && !defined(__clang__)
inline constexpr bool widens_groups = true;
FUSEDSTEP_INLINE void widen_group(const std::int8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepi8_epi32(bytes));
}
FUSEDSTEP_INLINE void narrow_group(const std::int32_t* from, std::int8_t* to) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}
// The same for halves that are the upper ones of 32 bits.
FUSEDSTEP_INLINE void widen_group(const std::uint16_t* from, float* to) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)));
}
FUSEDSTEP_INLINE void narrow_group(const std::uint32_t* from, std::uint16_t* to) {
  const __m256i upper = _mm256_set1_epi64x(0x0F0E0B0A07060302);
  const __m256i halves = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), upper);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000)));
}
#else
inline constexpr bool widens_groups = false;
FUSEDSTEP_INLINE void widen_group(const std::int8_t* from, std::int32_t* to) {
  for (std::int64_t i = 0; i < group; ++i) to[i] = from[i];
}
FUSEDSTEP_INLINE void narrow_group(const std::int32_t* from, std::int8_t* to) {
  for (std::int64_t i = 0; i < group; ++i) to[i] = static_cast<std::int8_t>(from[i]);
}
FUSEDSTEP_INLINE void widen_group(const std::uint16_t* from, float* to) {
  for (std::int64_t i = 0; i < group; ++i) to[i] = __builtin_bit_cast(float, static_cast<std::uint32_t>(from[i]) << 16);
}
FUSEDSTEP_INLINE void narrow_group(const std::uint32_t* from, std::uint16_t* to) {
  for (std::int64_t i = 0; i < group; ++i) to[i] = static_cast<std::uint16_t>(from[i] >> 16);
}
#endif

// Whether the result does not fit 64 bits. It then holds the low 64 bits.
inline bool multiply_overflows(std::int64_t a, std::int64_t b, std::int64_t& product) {
  return __builtin_mul_overflow(a, b, &product);
}
inline bool add_overflows(std::int64_t a, std::int64_t b, std::int64_t& sum) { return __builtin_add_overflow(a, b, &sum); }

// The floating-point settings of the calling thread, the settings of IEEE 754 (round to nearest, subnormals kept), and the
// status bits, which only record what happened.
#if defined(__x86_64__)
inline constexpr std::uint64_t default_state = 0x1f80;  // all exceptions masked
inline constexpr std::uint64_t status_flags = 0x3f;
inline std::uint64_t floating_point_state() { return _mm_getcsr(); }
inline void set_floating_point_state(std::uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
inline constexpr std::uint64_t default_state = 0;
inline constexpr std::uint64_t status_flags = 0;  // they are in another register
inline std::uint64_t floating_point_state() {
  std::uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
inline void set_floating_point_state(std::uint64_t state) { asm volatile("msr fpcr, %0" ::"r"(state)); }
inline void relax() { asm volatile("yield"); }
#else
// Only the rounding mode: other settings differ between these processors.
inline constexpr std::uint64_t default_state = FE_TONEAREST;
inline constexpr std::uint64_t status_flags = 0;
inline std::uint64_t floating_point_state() { return static_cast<std::uint64_t>(std::fegetround()); }
inline void set_floating_point_state(std::uint64_t state) { std::fesetround(static_cast<int>(state)); }
inline void relax() { asm volatile("" ::: "memory"); }
#endif

#if defined(__x86_64__)
// The features that both processor and system support. The compiler's own function for this is missing from clang-cl's
// runtime.
class Features {
 public:
  Features() {
    unsigned a, b, c, d, basic;
    if (__get_cpuid(1, &a, &b, &basic, &d) == 0 || (basic & bit_OSXSAVE) == 0 ||
        __get_cpuid_count(7, 0, &a, &found_, &c, &d) == 0) {
      found_ = 0;
      return;
    }
    multiplies_and_adds_ = (basic & bit_FMA) != 0;
    asm volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(kept_), "=d"(d) : "c"(0));  // xgetbv, which the baseline lacks
  }
  bool avx2() const { return has(bit_AVX2, 0x06) && multiplies_and_adds_; }
  bool avx512() const { return has(bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL, 0xe6); }

 private:
  bool has(unsigned bits, unsigned registers) const { return (found_ & bits) == bits && (kept_ & registers) == registers; }

  unsigned found_ = 0;
  bool multiplies_and_adds_ = false;
  unsigned kept_ = 0;  // the registers that the system saves when it switches threads
};
#endif

}  // namespace fusedstep
