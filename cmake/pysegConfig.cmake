# find_package(pyseg) for a checkout, an installed Python package (both: -DCMAKE_PREFIX_PATH=$(python
# -c "import pyseg; print(pyseg.cmake_prefix_path)")) and an installation by CMake. It defines
#
#   pyseg::headers  the kernels as headers: raw pointers and sizes, neither torch nor Python
#   pyseg::pyseg    libpyseg.so and the parts of torch that it needs: operators by the dispatcher
#
# find_package(pyseg COMPONENTS headers) needs neither torch nor the library. Optional variables:
# pyseg_LIBRARY (libpyseg.so), pyseg_TORCH (torch's folder), Python_EXECUTABLE (to find torch).
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH pyseg_root)
find_path(
  pyseg_INCLUDE_DIR pyseg/vlad.h NO_DEFAULT_PATH
  PATHS ${pyseg_root}/csrc/include # a checkout or an installed package
        ${CMAKE_CURRENT_LIST_DIR}/../../../include)
set(pyseg_headers_FOUND FALSE)
if(pyseg_INCLUDE_DIR)
  set(pyseg_headers_FOUND TRUE)
  if(NOT TARGET pyseg::headers)
    add_library(pyseg::headers INTERFACE IMPORTED)
    target_include_directories(pyseg::headers INTERFACE ${pyseg_INCLUDE_DIR})
    target_compile_features(pyseg::headers INTERFACE cxx_std_20)
  endif()
else()
  set(pyseg_NOT_FOUND_MESSAGE "no headers near ${CMAKE_CURRENT_LIST_DIR}")
endif()

set(pyseg_pyseg_FOUND FALSE)
if(NOT pyseg_FIND_COMPONENTS)
  set(pyseg_FIND_COMPONENTS headers pyseg)
  set(pyseg_FIND_REQUIRED_headers TRUE)
  set(pyseg_FIND_REQUIRED_pyseg TRUE)
endif()
if("pyseg" IN_LIST pyseg_FIND_COMPONENTS)
  find_library(
    pyseg_LIBRARY pyseg NO_DEFAULT_PATH
    PATHS ${pyseg_root}/pyseg # a checkout
          ${pyseg_root} # an installed package
          ${CMAKE_CURRENT_LIST_DIR}/../..)
  if(NOT pyseg_TORCH)
    find_package(Python COMPONENTS Interpreter QUIET)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c
              "from importlib.util import find_spec as f; print(*f('torch').submodule_search_locations)"
      OUTPUT_VARIABLE pyseg_TORCH ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  if(NOT pyseg_LIBRARY)
    set(pyseg_NOT_FOUND_MESSAGE
        "libpyseg.so was not found: give -Dpyseg_LIBRARY= the path that `python -m pyseg.info` prints")
  elseif(NOT EXISTS "${pyseg_TORCH}/lib/libtorch_cpu.so")
    set(pyseg_NOT_FOUND_MESSAGE
        "${Python_EXECUTABLE} has no torch: give -DPython_EXECUTABLE= one that has, or -Dpyseg_TORCH=")
  elseif(pyseg_headers_FOUND)
    set(pyseg_pyseg_FOUND TRUE)
    if(NOT TARGET pyseg::pyseg)
      add_library(pyseg::pyseg SHARED IMPORTED)
      set_target_properties(pyseg::pyseg PROPERTIES IMPORTED_LOCATION ${pyseg_LIBRARY}
                                                    IMPORTED_SONAME libpyseg.so)
      target_include_directories(pyseg::pyseg SYSTEM INTERFACE ${pyseg_TORCH}/include)
      target_compile_definitions(pyseg::pyseg INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
      target_link_libraries(pyseg::pyseg INTERFACE pyseg::headers ${pyseg_TORCH}/lib/libtorch_cpu.so
                                                   ${pyseg_TORCH}/lib/libc10.so)
      # Operators are called by name: the linker sees no reference to the library.
      target_link_options(pyseg::pyseg INTERFACE LINKER:--no-as-needed)
    endif()
  endif()
endif()

set(pyseg_FOUND TRUE)
foreach(component ${pyseg_FIND_COMPONENTS})
  if(pyseg_FIND_REQUIRED_${component} AND NOT pyseg_${component}_FOUND)
    set(pyseg_FOUND FALSE)
  endif()
endforeach()
