# The library as others see it: its binary interface, and the programs of examples/.
add_library(pith_abi_layout OBJECT abi/layout.c)
target_include_directories(pith_abi_layout PRIVATE ${PROJECT_SOURCE_DIR}/include)
set_target_properties(pith_abi_layout PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF)
target_compile_options(pith_abi_layout PRIVATE -Wall -Wextra -Wpedantic -Werror)

set(examples ${CMAKE_CURRENT_BINARY_DIR}/examples)
foreach(name generate chat batch policy)
  add_executable(example_${name} ${PROJECT_SOURCE_DIR}/examples/${name}.cc)
  target_link_libraries(example_${name} PRIVATE libpith pith_warnings)
endforeach()
foreach(name generate policy)
  add_executable(example_${name}_c ${PROJECT_SOURCE_DIR}/examples/${name}.c)
  target_link_libraries(example_${name}_c PRIVATE libpith m)
  target_compile_options(example_${name}_c PRIVATE -Wall -Wextra -Wpedantic -Werror)
  set_target_properties(example_${name}_c PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF)
endforeach()
foreach(name generate chat batch policy generate_c policy_c)
  set_target_properties(example_${name} PROPERTIES OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${examples})
endforeach()

find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME Abi COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/abi/check_abi.py
  ${PROJECT_SOURCE_DIR}/include/pith/pith.h $<TARGET_FILE:libpith>)
add_test(NAME AbiFindsChanges COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/abi/check_abi_test.py)
set_tests_properties(Abi AbiFindsChanges PROPERTIES LABELS unit)
add_test(NAME Examples COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/examples_test.py ${examples})
set_tests_properties(Examples PROPERTIES LABELS model TIMEOUT 1800 PROCESSORS 2)
# The Python package, in a virtual environment of this build; the program is what its eval is compared with. The second
# test is of what stands on the package: notebooks with plots, LangChain, LlamaIndex, llama-cpp-python and its own tests.
set(python_tests ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/python/tests/run.py
  --library $<TARGET_FILE:libpith> --binary $<TARGET_FILE:pith> --folder ${PROJECT_BINARY_DIR}/python)
add_test(NAME PythonPackage COMMAND ${python_tests} --small ${PITH_SMALL_MODEL})
set_tests_properties(PythonPackage PROPERTIES FIXTURES_REQUIRED SmallModel)
add_test(NAME SlowPythonFrameworks COMMAND ${python_tests} --name frameworks --half
  --tests ${PROJECT_SOURCE_DIR}/python/tests/frameworks --llama ${_pith_llama_prefix} --random $<TARGET_FILE:random_model>
  --packages @${PROJECT_SOURCE_DIR}/python/tests/frameworks/packages.txt)
set_tests_properties(PythonPackage SlowPythonFrameworks PROPERTIES LABELS slow TIMEOUT 1200 RUN_SERIAL ON
  SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
add_test(NAME LibraryFromPython COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/ctypes_test.py
  $<TARGET_FILE:libpith>)
set_tests_properties(LibraryFromPython PROPERTIES LABELS model TIMEOUT 600)
