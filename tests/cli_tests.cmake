# End-to-end tests of the program, one ctest entry per class of cli_test.py.
# Those that need a model skip themselves where there is none.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
foreach(class BrokenModels BadUsage Text)
  add_test(NAME cli_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli_test.py ${class})
  set_tests_properties(cli_${class} PROPERTIES LABELS unit TIMEOUT 600
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
endforeach()
# The simulator of caches and its trainings, on traces that are made on the way; with sanitizers in parts.
math(EXPR last_part "${PITH_TEST_PARTS} - 1")
set(entries cli_SimTrain)
if(PITH_SANITIZE)
  set(entries "")
  foreach(part RANGE ${last_part})
    list(APPEND entries "cli_SimTrain#${part}")
  endforeach()
endif()
foreach(entry IN LISTS entries)
  add_test(NAME ${entry} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/sim_test.py)
  set_tests_properties(${entry} PROPERTIES LABELS unit TIMEOUT 600 COST 60 ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
  if(entry MATCHES "#(.)$")
    set_property(TEST ${entry} APPEND PROPERTY ENVIRONMENT "PITH_TEST_PART=${CMAKE_MATCH_1}/${PITH_TEST_PARTS}")
  endif()
endforeach()
# What people and machines give by mistake, on tiny models of the test's own.
foreach(class Prompts Arguments Files)
  add_test(NAME cases_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cases_test.py ${class})
  set_tests_properties(cases_${class} PROPERTIES LABELS unit TIMEOUT 600
    ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>")
endforeach()
# pith_model_classes(PREFIX SCRIPT CLASSES... [THREADS n] [SMALL] [PARTED] [COST c]): entries PREFIX_CLASS of what a model
# runs in. One thread each lets two classes run side by side; what takes times or waits for them has the machine alone.
#
# SMALL: on the small model.
# PARTED: the class takes long on the default model. An eighth of its tests have that one and the others the small one,
# in turns by commit (PREFIX_CLASS#PART). With sanitizers all have the small one, and of a parted class an eighth is run.
function(pith_model_classes prefix script)
  cmake_parse_arguments(arg "SMALL;PARTED" "THREADS;COST" "" ${ARGN})
  set(model "${PITH_TEST_MODEL}")
  if(arg_SMALL)
    set(model ${PITH_SMALL_MODEL})
  endif()
  set(parts "")
  if(arg_PARTED)
    foreach(part RANGE ${last_part})
      list(APPEND parts ${part})
    endforeach()
  endif()
  if(NOT arg_THREADS)
    set(arg_THREADS 1)
  endif()
  foreach(class IN LISTS arg_UNPARSED_ARGUMENTS)
    set(names ${prefix}_${class})
    if(parts)
      list(TRANSFORM parts PREPEND "${prefix}_${class}#" OUTPUT_VARIABLE names)
    endif()
    foreach(name IN LISTS names)
      set(environment "PITH_BINARY=$<TARGET_FILE:pith>" "PITH_TEST_THREADS=${arg_THREADS}" "PITH_TEST_MODEL=${model}")
      if(name MATCHES "#(.)$")
        list(APPEND environment "PITH_TEST_PART=${CMAKE_MATCH_1}/${PITH_TEST_PARTS}" "PITH_SMALL_MODEL=${PITH_SMALL_MODEL}")
      endif()
      add_test(NAME ${name} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/${script} ${class})
      set_tests_properties(${name} PROPERTIES LABELS model TIMEOUT 3600 PROCESSORS ${arg_THREADS}
        FIXTURES_REQUIRED SmallModel ENVIRONMENT "${environment}")
      if(arg_COST)  # begins early: at the end nothing would run beside it
        set_tests_properties(${name} PROPERTIES COST ${arg_COST})
      endif()
    endforeach()
  endforeach()
endfunction()
set(threads 2)
if(PITH_SANITIZE)  # of the small model a second would mostly wait
  set(threads 1)
endif()
pith_model_classes(cli cli_test.py TruncatedModel BadPrompts)
pith_model_classes(cli cli_test.py Run THREADS ${threads})
pith_model_classes(cli cli_test.py Commands THREADS ${threads} PARTED COST 100)
# A process for each recipe and budget, on the small model, whose bytes are the default one's: an eighth of them for each
# commit. In one process each has either model (ModelSmallBudget), and with sanitizers only there.
if(NOT PITH_SANITIZE)
  foreach(part RANGE ${last_part})
    add_test(NAME "cli_HardBudget#${part}"
      COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cli_test.py HardBudget)
    set_tests_properties("cli_HardBudget#${part}" PROPERTIES LABELS model TIMEOUT 3600
      FIXTURES_REQUIRED SmallModel ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_TEST_THREADS=1;\
PITH_TEST_MODEL=${PITH_SMALL_MODEL};PITH_RECIPE_PART=${part}/${PITH_TEST_PARTS}")
  endforeach()
endif()
# Short prompts in many processes, and prefixes that outlive their process. Texts and flags; the code beneath runs with
# sanitizers in its layers' own tests.
if(NOT PITH_SANITIZE)
  pith_model_classes(session session_cases_test.py Conversations Sampling Terminal PARTED)
  pith_model_classes(store store_test.py Kept Tidied PARTED)
  pith_model_classes(store store_test.py Placed Remote)
  pith_model_classes(store store_test.py Served THREADS 2)  # a server takes both
  pith_model_classes(chat chat_test.py Commands PARTED)
  pith_model_classes(chat chat_test.py KilledSaves SMALL)  # a process for each kill: most of it is to load the model
  if(PITH_LIBEDIT)
    pith_model_classes(chat chat_test.py Terminal THREADS 2)
  endif()
endif()
# The server with raw sockets and, where the package index can be reached, with the official clients.
if(NOT PITH_SANITIZE)
  foreach(class Manners Llama Infill Slots Models OpenAi AnthropicClient OllamaClient LangChain)
    add_test(NAME serve_${class} COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/serve_test.py ${class})
    set_tests_properties(serve_${class} PROPERTIES LABELS model TIMEOUT 1800 RUN_SERIAL ON
      ENVIRONMENT "PITH_BINARY=$<TARGET_FILE:pith>;PITH_RANDOM_MODEL=$<TARGET_FILE:random_model>;\
PITH_NARROW_MODEL=$<TARGET_FILE:narrow_model>")
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
