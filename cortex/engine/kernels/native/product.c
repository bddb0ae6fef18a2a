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

typedef struct {
  int64_t id, rows, inputs, bytes, count, first;
  int index, bf16;
  const uint8_t *tiles;
  const void *bias, *from;
  void *y;
  uint8_t *memory;
} Products;

static void prepare_passes(const void *what, int64_t first, int64_t last, int thread) {
  const Products *p = what;
  (void)thread;
  for (int64_t i = first; i < last; i++)
    prepare(p->id, (const uint16_t *)p->from, p->inputs, p->count, p->memory, i);
}

static void multiply_groups(const void *what, int64_t first, int64_t last, int thread) {
  const Products *p = what;
  (void)thread;
  for (int64_t g = first; g < last; g++) {
    const uint8_t *own = p->tiles + g * p->bytes;
    if (p->id == DENSE)
      dense_group(own, p->rows, p->inputs, g, p->memory, p->count, p->bias, p->y, p->first);
    else if (p->bf16)
      rounded_group(p->index, own, p->rows, p->inputs, g, p->memory, p->count, p->bias, p->y,
                    p->first);
    else
      exact_group(p->index, own, p->rows, p->inputs, g, (const float *)p->from, p->count, p->bias,
                  p->y, p->first);
  }
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
  if (rows * inputs <= 65536) threads = 1;
  Products p = {id, rows, inputs, bytes, 0, 0, index, (int)bf16, tiles, bias, NULL, y, memory};
  for (; p.first < tokens; p.first += CHUNK) {
    p.count = tokens - p.first < CHUNK ? tokens - p.first : CHUNK;
    p.from = (const uint8_t *)x + p.first * inputs * width;
    /* A few rows are prepared by the caller, which spares a loop. */
    int64_t passes = passes_of(p.count);
    if (bf16) share_out(passes, p.count <= TOKENS ? passes : 1, threads, prepare_passes, &p);
    share_out(groups, run, threads, multiply_groups, &p);
  }
}
