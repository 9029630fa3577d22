# Builds for another processor with Debian's cross compiler for FUSEDSTEP_TARGET, and runs the programs by qemu-user.
# Needs g++-aarch64-linux-gnu, -riscv64-, -powerpc64le- or -s390x-, and qemu-user-static.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FUSEDSTEP_TARGET)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR ${FUSEDSTEP_TARGET})
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER ${FUSEDSTEP_TARGET}-gcc)
set(CMAKE_CXX_COMPILER ${FUSEDSTEP_TARGET}-g++)
string(REPLACE powerpc ppc emulated ${CMAKE_SYSTEM_PROCESSOR})
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-${emulated}-static -L /usr/${FUSEDSTEP_TARGET})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
