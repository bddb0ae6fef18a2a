/* One product from beginning to end: prepare the rows of x, then share the weight's rows out. */

/* What a pass over TOKENS rows of x keeps of them. */
static int64_t pass_bytes(int64_t id, int64_t inputs) {
  return id == DENSE ? TOKENS * 2 * round_up(inputs, 32) : rounded_bytes(inputs, TOKENS);
}

/* Bytes of memory that a product over *tokens* rows wants. */
int64_t cortex_product_memory(int64_t id, int64_t inputs, int64_t tokens) {
  int64_t rows = tokens < CHUNK ? tokens : CHUNK;
  /* A pass of fewer than TOKENS rows takes the room of a whole one; at most log2(TOKENS) do. */
  return (rows / TOKENS + 4) * pass_bytes(id, inputs);
}

static int64_t passes_of(int64_t tokens) {
  int64_t passes = 0;
  for (int64_t m = 0; m < tokens; m += share(tokens - m)) passes++;
  return passes;
}

static void prepare(int64_t id, const uint16_t *x, int64_t inputs, int64_t tokens, uint8_t *memory,
                    int64_t pass) {
  int64_t m = 0;
  for (int64_t i = 0; i < pass; i++) m += share(tokens - m);
  int count = share(tokens - m);
  memory += pass * pass_bytes(id, inputs);
  if (id == DENSE)
    pair_rows(x + m * inputs, inputs, count, (uint32_t *)(void *)memory);
  else
    round_rows(&formats[format_index(id)], x + m * inputs, inputs, count,
               rounded_at(memory, inputs, count));
}

/* Tiles of `cortex_pack` (or, with GGUF's number for bf16, the layout of `cortex_dense_pack`) times
   x, both bf16 or, for tiles, both fp32, with *bias* (rows,) in the same dtype or NULL. *memory* is
   `cortex_product_memory` long and aligned to 64 bytes. */
void cortex_product(int64_t id, int64_t rows, int64_t inputs, const uint8_t *tiles, const void *bias,
                    const void *x, void *y, int64_t tokens, int64_t bf16, uint8_t *memory,
                    int64_t threads) {
  int index = format_index(id), width = bf16 ? 2 : 4;
  int64_t bytes = id == DENSE ? dense_group_bytes(inputs) : group_bytes(&formats[index], inputs);
  int64_t groups = (rows + ROWS - 1) / ROWS;
  int64_t run = groups / (threads * 8) + 1; /* neighbours go to one thread: it reads one stream */
  /* A few rows are prepared before the threads start, which spares them a barrier. */
  int early = bf16 && tokens <= TOKENS;
  for (int64_t i = 0; early && i < passes_of(tokens); i++)
    prepare(id, (const uint16_t *)x, inputs, tokens, memory, i);
#pragma omp parallel num_threads((int)threads) if (rows * inputs > 65536)
  for (int64_t first = 0; first < tokens; first += CHUNK) {
    int64_t count = tokens - first < CHUNK ? tokens - first : CHUNK;
    const void *from = (const uint8_t *)x + first * inputs * width;
    if (bf16 && !early) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < passes_of(count); i++)
        prepare(id, (const uint16_t *)from, inputs, count, memory, i);
    }
#pragma omp for schedule(dynamic, run)
    for (int64_t g = 0; g < groups; g++) {
      const uint8_t *own = tiles + g * bytes;
      if (id == DENSE)
        dense_group(own, rows, inputs, g, memory, count, bias, y, first);
      else if (bf16)
        rounded_group(index, own, rows, inputs, g, memory, count, bias, y, first);
      else
        exact_group(index, own, rows, inputs, g, (const float *)from, count, bias, y, first);
    }
  }
}
