# Builds for Windows on x86-64 with MinGW-w64 (g++-mingw-w64-x86-64-posix), and runs the programs by Wine (wine64).
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR AMD64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)  # because Wine would not find the runtimes
find_program(wine NAMES wine64 wine PATHS /usr/lib/wine)
set(CMAKE_CROSSCOMPILING_EMULATOR ${wine})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
