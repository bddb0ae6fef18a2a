/* bf16 weights times bf16 activations, where the processor multiplies pairs of them.

   The layout is that of tiles without scales: 16 rows, and of these the inputs two by two, so that
   a vector of 64 bytes is inputs 2 i and 2 i + 1 of all rows. Inputs are padded to 32 with zeros.
   Products are exact and summed in fp32, even and odd pairs apart, in the same order whatever rows
   come together. */

#define DENSE 30 /* GGUF's number for bf16 */

INLINE int64_t dense_group_bytes(int64_t inputs) { return ROWS * 2 * round_up(inputs, 32); }

/* Bytes of a bf16 weight laid out, -1 where there are no kernels for it. */
int64_t cortex_dense_bytes(int64_t rows, int64_t inputs) {
#if defined(HAVE_BF16_DOT)
  return (rows + ROWS - 1) / ROWS * dense_group_bytes(inputs);
#else
  (void)rows, (void)inputs;
  return -1;
#endif
}

typedef struct {
  const uint16_t *weight;
  uint16_t *out;
  int64_t rows, inputs;
} DensePack;

static void dense_pack_groups(const void *what, int64_t first, int64_t last, int thread) {
  const DensePack *p = what;
  int64_t size = dense_group_bytes(p->inputs) / 2;
  (void)thread;
  for (int64_t g = first; g < last; g++)
    for (int64_t r = 0; r < ROWS && g * ROWS + r < p->rows; r++)
      for (int64_t k = 0; k < p->inputs; k++)
        p->out[g * size + k / 2 * 32 + r * 2 + k % 2] = p->weight[(g * ROWS + r) * p->inputs + k];
}

/* bf16 `(rows, inputs)` to the layout at *out*, `cortex_dense_bytes` long and zero. */
void cortex_dense_pack(int64_t rows, int64_t inputs, const uint16_t *weight, uint16_t *out,
                       int64_t threads) {
  DensePack pack = {weight, out, rows, inputs};
  share_out((rows + ROWS - 1) / ROWS, 16, threads, dense_pack_groups, &pack);
}

#if defined(HAVE_BF16_DOT)

/* *count* rows of x: pair i of row m at out[i * count + m]. */
static void pair_rows(const uint16_t *x, int64_t inputs, int count, uint32_t *out) {
  for (int m = 0; m < count; m++, x += inputs) {
    int64_t i = 0;
    for (; i < inputs / 2; i++) memcpy(out + i * count + m, x + 2 * i, 4);
    for (; i < round_up(inputs, 32) / 2; i++)
      out[i * count + m] = 2 * i < inputs ? x[2 * i] : 0;
  }
}

INLINE void dense_dot(const int count, const uint8_t *w, const uint32_t *x, int64_t pairs,
                      float *acc) {
  vf sum[2][MAX_TOKENS];
UNROLL
  for (int m = 0; m < count; m++) sum[0][m] = sum[1][m] = vf_zero();
  for (int64_t i = 0; i < pairs; i += 2, w += 128, x += 2 * count) {
    __builtin_prefetch(w + AHEAD);
    __builtin_prefetch(w + AHEAD + 64);
UNROLL
    for (int odd = 0; odd < 2; odd++) {
      __m512bh weight = (__m512bh)_mm512_loadu_si512(w + 64 * odd);
UNROLL
      for (int m = 0; m < count; m++) {
        __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[odd * count + m]);
        sum[odd][m] = _mm512_dpbf16_ps(sum[odd][m], weight, pair);
      }
    }
  }
UNROLL
  for (int m = 0; m < count; m++) vf_store(acc + m * ROWS, vf_add(sum[0][m], sum[1][m]));
}

static void dense_group(const uint8_t *w, int64_t rows, int64_t inputs, int64_t g,
                        const uint8_t *memory, int64_t tokens, const void *bias, void *y,
                        int64_t row) {
  int64_t pairs = round_up(inputs, 32) / 2, stride = TOKENS * pairs * 4;
  int count;
  for (int64_t m = 0; m < tokens; m += count, memory += stride) {
    float acc[MAX_TOKENS * ROWS];
    const uint32_t *x = (const uint32_t *)(const void *)memory;
    count = share(tokens - m);
    switch (count) {
      case 8: dense_dot(8, w, x, pairs, acc); break;
      case 4: dense_dot(4, w, x, pairs, acc); break;
      case 2: dense_dot(2, w, x, pairs, acc); break;
      default: dense_dot(1, w, x, pairs, acc);
    }
    for (int i = 0; i < count; i++)
      finish(acc + i * ROWS, bias, g * ROWS, rows, y, row + m + i, 1);
  }
}

#else

/* `cortex_dense_bytes` has said that there are none. */
static void pair_rows(const uint16_t *x, int64_t inputs, int count, uint32_t *out) {
  (void)x, (void)inputs, (void)count, (void)out;
}
static void dense_group(const uint8_t *w, int64_t rows, int64_t inputs, int64_t g,
                        const uint8_t *memory, int64_t tokens, const void *bias, void *y,
                        int64_t row) {
  (void)w, (void)rows, (void)inputs, (void)g, (void)memory, (void)tokens, (void)bias, (void)y;
  (void)row;
}

#endif
