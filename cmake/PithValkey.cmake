# Defines pith_valkey: libvalkey as a static library, which scripts/build_valkey.sh builds once and keeps in the cache
# folder. PITH_VALKEY=AUTO: turned OFF where that fails, and not tried again in this build tree.
set(_pith_valkey_environment)
if(PITH_VALKEY STREQUAL "AUTO")
  set(_pith_valkey_environment PIP_RETRIES=0 PIP_TIMEOUT=5)
endif()
if(PITH_VALKEY_FAILED AND PITH_VALKEY STREQUAL "AUTO")
  set(_pith_valkey_result 1)
else()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env ${_pith_valkey_environment} ${PROJECT_SOURCE_DIR}/scripts/build_valkey.sh
    OUTPUT_VARIABLE _pith_valkey_prefix
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE _pith_valkey_result)
endif()
if(_pith_valkey_result EQUAL 0)
  add_library(pith_valkey INTERFACE)
  target_include_directories(pith_valkey SYSTEM INTERFACE ${_pith_valkey_prefix}/include)
  target_link_libraries(pith_valkey INTERFACE ${_pith_valkey_prefix}/lib/libvalkey.a)
elseif(PITH_VALKEY STREQUAL "AUTO")
  message(STATUS "libvalkey could not be built: there will be no stores on servers of Redis and Valkey (-DPITH_VALKEY=ON tries again).")
  set(PITH_VALKEY_FAILED ON CACHE INTERNAL "libvalkey could not be built")
  set(PITH_VALKEY OFF)
else()
  message(FATAL_ERROR "libvalkey could not be built; see the message above, or configure with -DPITH_VALKEY=OFF.")
endif()
