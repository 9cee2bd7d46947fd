/* Streams a reply inside a KV budget of 16 MiB, in C:  generate_c MODEL.gguf PROMPT */
#include <pith/pith.h>
#include <stdio.h>

static bool Show(void* user, const char* text, size_t length) {
  (void)user;
  return fwrite(text, 1, length, stdout) == length && fflush(stdout) == 0;
}

static pith_status Run(pith_model* model, const char* message) {
  pith_engine_options engine_options = PITH_INIT(pith_engine_options);
  engine_options.budget_bytes = 16 << 20;
  engine_options.num_ctx = 4096;
  engine_options.recipe = "snapkv";
  pith_sampler_options sampling;
  pith_generate_options options = PITH_INIT(pith_generate_options);
  options.message = message;
  options.max_tokens = 32;
  options.sampling = &sampling;
  options.on_text = Show;
  pith_generation generation = PITH_INIT(pith_generation);
  pith_engine_stats stats = PITH_INIT(pith_engine_stats);

  pith_engine* engine = NULL;
  pith_conversation* conversation = NULL;
  pith_status status = pith_engine_new(model, &engine_options, &engine);
  if (status == PITH_OK) status = pith_conversation_new(engine, NULL, &conversation);
  if (status == PITH_OK) status = pith_sampler_options_init(model, &sampling, sizeof sampling);
  if (status == PITH_OK) {
    sampling.temperature = 0;
    status = pith_conversation_generate(conversation, &options, &generation);
  }
  if (status == PITH_OK) status = pith_engine_get_stats(engine, &stats);
  if (status == PITH_OK) {
    printf("\n[%zu tokens, %s, KV peak %llu of %llu bytes]\n", generation.num_tokens, pith_stop_name(generation.stop),
           (unsigned long long)stats.peak_bytes, (unsigned long long)stats.budget_bytes);
  }
  pith_conversation_free(conversation);
  pith_engine_free(engine);
  return status;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: %s MODEL.gguf PROMPT\n", argv[0]);
    return 2;
  }
  pith_model* model;
  pith_status status = pith_model_load(argv[1], NULL, &model);
  if (status == PITH_OK) status = Run(model, argv[2]);
  pith_model_free(model);
  if (status == PITH_OK) return 0;
  fprintf(stderr, "%s: %s\n", pith_status_name(status), pith_last_error());
  return 1;
}
