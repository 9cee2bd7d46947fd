# Read by libllama's own build behind its project() (scripts/build_llama.sh): its library only describes graphs and loads
# files, one function for each architecture, and what it spends there is nothing beside the kernels of ggml. Optimised
# less, it compiles sooner; what runs for each token or character stays.
function(pith_quicken_llama)
  target_compile_options(llama PRIVATE -O1)
  get_target_property(sources llama SOURCES)
  list(FILTER sources INCLUDE REGEX "(sampler|vocab|grammar|unicode|quant)[^/]*\\.cpp$")
  get_target_property(folder llama SOURCE_DIR)
  list(TRANSFORM sources PREPEND ${folder}/)
  set_property(SOURCE ${sources} TARGET_DIRECTORY llama APPEND PROPERTY COMPILE_OPTIONS -O3)
endfunction()
cmake_language(DEFER CALL pith_quicken_llama)
