// Writes the logits of a GGUF model for given ids: llama_cpp_logits MODEL IDS OUT. IDS holds int32, OUT float32 [T, V].
//
// Compile it against a static build of llama.cpp (cmake -DBUILD_SHARED_LIBS=OFF), SOURCE and BUILD being its folders:
//   g++ -O1 -ISOURCE/include -ISOURCE/ggml/include benchmarks/llama_cpp_logits.cpp -o BUILD/bin/llama_cpp_logits
//     BUILD/src/libllama.a BUILD/ggml/src/libggml{,-cpu,-base}.a -fopenmp -lpthread -ldl -lm
#include <cstdint>
#include <cstdio>
#include <vector>

#include "llama.h"

int main(int count, char** arguments) {
  if (count != 4) return 1;
  llama_backend_init();
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model* model = llama_model_load_from_file(arguments[1], llama_model_default_params());
  std::FILE* input = std::fopen(arguments[2], "rb");
  if (!model || !input) return 2;
  std::vector<int32_t> ids(1 << 20);
  ids.resize(std::fread(ids.data(), 4, ids.size(), input));
  const int tokens = static_cast<int>(ids.size());
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = parameters.n_batch = (tokens + 255) / 256 * 256;
  llama_context* context = llama_init_from_model(model, parameters);
  llama_batch batch = llama_batch_init(tokens, 0, 1);
  batch.n_tokens = tokens;
  for (int i = 0; i < tokens; i++) {
    batch.token[i] = ids[i];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = true;
  }
  if (!context || llama_decode(context, batch)) return 3;
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::FILE* output = std::fopen(arguments[3], "wb");
  if (!output) return 4;
  for (int i = 0; i < tokens; i++) std::fwrite(llama_get_logits_ith(context, i), 4, vocabulary, output);
  return std::fclose(output);
}
