# cmake -DSOURCE=... -DHEADER=... -P PithCommit.cmake: writes the source's commit into a header, when it has changed.
# "+" behind it: sources differ from that commit. Empty: not a repository, or no git.
execute_process(COMMAND git -C ${SOURCE} rev-parse --short=10 HEAD
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit "")
else()
  execute_process(COMMAND git -C ${SOURCE} status --porcelain --untracked-files=no -- src include CMakeLists.txt
    OUTPUT_VARIABLE changes ERROR_QUIET)
  if(changes)
    string(APPEND commit "+")
  endif()
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define PITH_COMMIT \"${commit}\"\n")
