# Defines pith_valkey: libvalkey as a static library, which scripts/build_valkey.sh builds once and keeps in the cache
# folder.
execute_process(
  COMMAND ${PROJECT_SOURCE_DIR}/scripts/build_valkey.sh
  OUTPUT_VARIABLE _pith_valkey_prefix
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE _pith_valkey_result)
if(NOT _pith_valkey_result EQUAL 0)
  message(FATAL_ERROR "libvalkey could not be built; see the message above, or configure with -DPITH_VALKEY=OFF.")
endif()
add_library(pith_valkey INTERFACE)
target_include_directories(pith_valkey SYSTEM INTERFACE ${_pith_valkey_prefix}/include)
target_link_libraries(pith_valkey INTERFACE ${_pith_valkey_prefix}/lib/libvalkey.a)
