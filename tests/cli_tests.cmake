# End-to-end tests of the program, one ctest entry per class of cli_test.py.
# Those that need a model skip themselves where there is none.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
foreach(class BrokenModels BadUsage Text)
  add_test(NAME cli_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli_test.py ${class})
  set_tests_properties(cli_${class} PROPERTIES LABELS unit TIMEOUT 600
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
endforeach()
# The simulator of caches and its trainings, on traces that are made on the way.
add_test(NAME cli_SimTrain COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/sim_test.py)
set_tests_properties(cli_SimTrain PROPERTIES LABELS unit TIMEOUT 600 COST 60 ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
# What people and machines give by mistake, on tiny models of the test's own.
foreach(class Prompts Arguments Files)
  add_test(NAME cases_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cases_test.py ${class})
  set_tests_properties(cases_${class} PROPERTIES LABELS unit TIMEOUT 600
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
endforeach()
# One thread each, so that two classes run side by side; what takes times or waits for them has the machine alone. Of
# Commands, which take a minute on the default model, a quarter of the tests have it and the others the small one, in
# turns by commit; with sanitizers all have the small one.
set(classes TruncatedModel BadPrompts Run)
if(PITH_SANITIZE)
  list(APPEND classes Commands)
else()
  math(EXPR last_part "${PITH_TEST_PARTS} - 1")
  foreach(part RANGE ${last_part})
    list(APPEND classes "Commands#${part}")
  endforeach()
endif()
foreach(entry IN LISTS classes)
  string(REGEX MATCH "^[A-Za-z]+" class ${entry})
  set(threads 1)
  if(class MATCHES "^(Run|Commands)$" AND NOT PITH_SANITIZE)  # of the small model a second would mostly wait
    set(threads 2)
  endif()
  set(part "")
  set(fixture "")
  if(entry MATCHES "#(.)$")
    set(part "PITH_TEST_PART=${CMAKE_MATCH_1}/${PITH_TEST_PARTS};PITH_SMALL_MODEL=${PITH_SMALL_MODEL}")
  endif()
  if(part OR PITH_SANITIZE)
    set(fixture FIXTURES_REQUIRED SmallModel)
  endif()
  add_test(NAME "cli_${entry}" COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli_test.py ${class})
  set_tests_properties("cli_${entry}" PROPERTIES LABELS model TIMEOUT 3600 PROCESSORS ${threads} ${fixture}
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_MODEL=${PITH_TEST_MODEL};PITH_TEST_THREADS=${threads};${part}")
  if(class STREQUAL "Commands")
    set_tests_properties("cli_${entry}" PROPERTIES COST 100)  # begins first: at the end nothing would run beside it
  endif()
endforeach()
# A process for each recipe and budget: a quarter of them for each commit, which goes through all in one process, too
# (ModelSmallBudget), and with sanitizers only there.
if(NOT PITH_SANITIZE)
  math(EXPR last_part "${PITH_TEST_PARTS} - 1")
  foreach(part RANGE ${last_part})
    add_test(NAME "cli_HardBudget#${part}"
      COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli_test.py HardBudget)
    set_tests_properties("cli_HardBudget#${part}" PROPERTIES LABELS model TIMEOUT 3600
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_THREADS=1;PITH_RECIPE_PART=${part}/${PITH_TEST_PARTS}")
  endforeach()
endif()
# Short prompts in many processes, whose start is most of it: one thread each, two classes side by side. Texts and flags;
# the code beneath runs with sanitizers in the session layer's own tests.
if(NOT PITH_SANITIZE)
  foreach(class Conversations Sampling Terminal)
    add_test(NAME session_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/session_cases_test.py ${class})
    set_tests_properties(session_${class} PROPERTIES LABELS model TIMEOUT 3600
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_THREADS=1")
  endforeach()
endif()
# Prefixes that outlive their process.
if(NOT PITH_SANITIZE)
  foreach(class Kept Placed Tidied Served Remote)
    set(threads 1)
    if(class STREQUAL "Served")  # a server takes both
      set(threads 2)
    endif()
    add_test(NAME store_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/store_test.py ${class})
    set_tests_properties(store_${class} PROPERTIES LABELS model TIMEOUT 1800 PROCESSORS ${threads}
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_THREADS=${threads}")
  endforeach()
endif()
if(NOT PITH_SANITIZE)
  set(chat_classes Commands KilledSaves)
  if(PITH_LIBEDIT)
    list(APPEND chat_classes Terminal)
  endif()
  foreach(class ${chat_classes})
    set(threads 2)
    if(class STREQUAL "Commands")
      set(threads 1)
    endif()
    add_test(NAME chat_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/chat_test.py ${class})
    set_tests_properties(chat_${class} PROPERTIES LABELS model TIMEOUT 1800 PROCESSORS ${threads}
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_THREADS=${threads}")
  endforeach()
endif()
# The server with raw sockets and, where the package index can be reached, with the official clients.
if(NOT PITH_SANITIZE)
  foreach(class Manners Llama Slots Models OpenAi AnthropicClient OllamaClient LangChain)
    add_test(NAME serve_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/serve_test.py ${class})
    set_tests_properties(serve_${class} PROPERTIES LABELS model TIMEOUT 1800 RUN_SERIAL ON
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_RANDOM_MODEL=$<TARGET_FILE:random_model>")
  endforeach()
endif()
# The page in a browser, and a rolling restart, with programs of Debian's that not every machine has.
if(NOT PITH_SANITIZE)
  foreach(class Page RollingRestart)
    add_test(NAME Slow${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/serve_slow_test.py ${class})
    set_tests_properties(Slow${class} PROPERTIES LABELS slow TIMEOUT 600 RUN_SERIAL ON
      SKIP_REGULAR_EXPRESSION "skipped=" ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
  endforeach()
endif()
# The NGINX module on Debian's NGINX, in front of a real origin.
if(NOT PITH_SANITIZE)
  foreach(class Decides Replays Survives Sidecars)
    add_test(NAME SlowNginx${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/nginx_test.py ${class})
    set_tests_properties(SlowNginx${class} PROPERTIES LABELS slow TIMEOUT 600 RUN_SERIAL ON
      SKIP_REGULAR_EXPRESSION "skipped=" ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
  endforeach()
endif()
# Sanitizers slow pith down and leave libllama alone: no ratio holds there.
if(NOT PITH_SANITIZE)
  add_test(NAME SlowSpeed COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/speed_test.py $<TARGET_FILE:pith>)
  set_tests_properties(SlowSpeed PROPERTIES
    LABELS "slow;speed" RUN_SERIAL ON TIMEOUT 900 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
endif()
math(EXPR last_part "${PITH_TEST_PARTS} - 1")
foreach(part RANGE ${last_part})
  add_test(NAME "SlowMutations#${part}"
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/mutation_test.py)
  set_tests_properties("SlowMutations#${part}" PROPERTIES LABELS slow TIMEOUT 1800
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_RANDOM_MODEL=$<TARGET_FILE:random_model>;\
PITH_MUTATION_PART=${part}/${PITH_TEST_PARTS}")
endforeach()
add_test(NAME SpeedModel COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/speed_model_test.py
  $<TARGET_FILE:speed_model> $<TARGET_FILE:pith>)
set_tests_properties(SpeedModel PROPERTIES LABELS model TIMEOUT 600 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
