/* A policy from outside of pith, in C: entries that any query has ever looked at hard, less those of long keys, of
   which heads keep more whose keys differ more. The scorer remembers a number for each entry, and takes a parameter
   from the recipe.  policy_c MODEL.gguf */
#include <math.h>
#include <pith/pith.h>
#include <stdio.h>

/* Called for new queries: what some entries received. */
static void Observe(void* user, const pith_observation* seen, float* const* columns) {
  (void)user;
  for (int i = 0; i < seen->num_entries; ++i) columns[0][i] = fmaxf(columns[0][i], seen->largest[i]);
}

/* Called when entries must go. Larger stays. */
static bool Score(void* user, const pith_layer_input* layer, float* const* scores) {
  const float weight = (float)layer->params[0];
  ++*(int*)user;
  for (int h = 0; h < layer->num_heads; ++h) {
    const pith_head_input* head = layer->heads[h];
    for (int i = 0; i < head->num_entries; ++i) {
      float squares = 0;
      for (int d = 0; d < layer->key_dim; ++d) {
        const float x = head->keys[i * layer->key_dim + d];
        squares += x * x;
      }
      scores[h][i] = head->columns[0][i] - weight * sqrtf(squares);
    }
  }
  return true;
}

/* Called when it is known how many entries stay in all. Heads of whose scores the largest stands out keep fewer. */
static bool Allocate(void* user, const pith_division* division, int32_t* const* keep) {
  (void)user;
  for (int l = 0; l < division->num_layers; ++l) {
    const pith_scored_layer* layer = division->layers[l];
    double all = 0;
    for (int h = 0; h < layer->num_heads; ++h) all += layer->notes[h][0];
    for (int h = 0; h < layer->num_heads; ++h) {
      const double share = all > 0 ? layer->notes[h][0] / all : 1.0 / layer->num_heads;
      keep[l][h] = (int32_t)(share * layer->num_heads * division->keep);
    }
  }
  return true;
}

/* Called before, while keys are at hand: how different they are from one another. */
static bool Prepare(void* user, const pith_layer_input* layer, double* const* notes) {
  (void)user;
  for (int h = 0; h < layer->num_heads; ++h) {
    const pith_head_input* head = layer->heads[h];
    for (int d = 0; d < layer->key_dim; ++d) {
      double sum = 0, squares = 0;
      for (int i = 0; i < head->num_entries; ++i) {
        const double x = head->keys[i * layer->key_dim + d];
        sum += x;
        squares += x * x;
      }
      if (head->num_entries > 0) notes[h][0] += squares - sum * sum / head->num_entries;
    }
  }
  return true;
}

static pith_status RegisterAllocator(void) {
  pith_allocator_options options = PITH_INIT(pith_allocator_options);
  options.summary = "heads whose keys differ more keep more";
  options.needs = PITH_NEED_KEYS;
  options.prepare = Prepare;
  options.num_notes = 1;
  return pith_register_allocator("by_spread", Allocate, NULL, &options);
}

static pith_status Register(int* calls) {
  const pith_param params[] = {
      {sizeof(pith_param), "weight", "how much the length of a key counts", 0.01, 0, 1, false},
  };
  const pith_column columns[] = {{sizeof(pith_column), "largest_attention", 0}};
  pith_scorer_options options = PITH_INIT(pith_scorer_options);
  options.summary = "largest attention so far, less the length of the key";
  options.needs = PITH_NEED_KEYS | PITH_NEED_EVERY_QUERY | PITH_NEED_LARGEST;
  options.params = params;
  options.num_params = 1;
  options.columns = columns;
  options.num_columns = 1;
  options.observe = Observe;
  return pith_register_scorer("peak_key", Score, calls, &options);
}

static pith_status Read(pith_engine* engine, const pith_model* model, double* kept) {
  static const char text[] = "One reads a long text, and then only some of it is kept. ";
  enum { kRepeats = 12, kMost = 512 };
  int32_t tokens[kMost];
  pith_sequence_options options = PITH_INIT(pith_sequence_options);
  options.recipe = "score=peak_key:weight=0.02 mod=criticalkv alloc=by_spread"; /* beside any built-in stage */
  options.compress_after = true;
  pith_sequence* sequence = NULL;
  pith_status status = pith_sequence_new(engine, &options, &sequence);
  for (int i = 0; i < kRepeats && status == PITH_OK; ++i) {
    size_t count = 0;
    status = pith_tokenize(model, text, sizeof text - 1, i == 0, false, tokens, kMost, &count);
    if (status == PITH_OK) status = pith_sequence_prefill(sequence, tokens, count, false, NULL, NULL);
  }
  if (status == PITH_OK) status = pith_sequence_compress(sequence, NULL, 0.25, kept);
  pith_sequence_free(sequence);
  return status;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]);
    return 2;
  }
  int calls = 0;
  double kept = 0;
  pith_model* model = NULL;
  pith_engine* engine = NULL;
  pith_engine_options options = PITH_INIT(pith_engine_options);
  options.num_ctx = 1024;
  options.budget_bytes = 32 << 20;
  pith_status status = Register(&calls);
  if (status == PITH_OK) status = RegisterAllocator();
  if (status == PITH_OK) status = pith_model_load(argv[1], NULL, &model);
  if (status == PITH_OK) status = pith_engine_new(model, &options, &engine);
  if (status == PITH_OK) status = Read(engine, model, &kept);
  pith_engine_free(engine);
  pith_model_free(model);
  if (status != PITH_OK) {
    fprintf(stderr, "%s: %s\n", pith_status_name(status), pith_last_error());
    return 1;
  }
  printf("%.0f%% of the entries stay; the scorer was asked for %d layers\n", 100 * kept, calls);
  return calls > 0 && kept < 0.3 ? 0 : 1;
}
