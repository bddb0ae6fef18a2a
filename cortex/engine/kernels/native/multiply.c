/* A small product in fp32, for what lies in the caches: c (rows, columns) += a (rows, depth)
   b (depth, columns). Column counts and b's and c's strides are multiples of 16. */

#if LANES == 8
#define MULTIPLY_ROWS 4
#else
#define MULTIPLY_ROWS 8
#endif

INLINE void multiply_block(const float *a, int64_t row_step, int64_t depth_step, const void *b,
                           int64_t b_step, float *c, int64_t c_step, const int rows, int depth,
                           const int vectors, const int bf16) {
  vf sum[8][2];
UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) sum[r][v] = vf_load(c + r * c_step + v * LANES);
  for (int k = 0; k < depth; k++) {
    vf right[2];
    for (int v = 0; v < vectors; v++) right[v] = vf_get(b, k * b_step + v * LANES, bf16);
UNROLL
    for (int r = 0; r < rows; r++) {
      vf left = vf_set1(a[r * row_step + k * depth_step]);
      for (int v = 0; v < vectors; v++) sum[r][v] = vf_fma(left, right[v], sum[r][v]);
    }
  }
UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) vf_store(c + r * c_step + v * LANES, sum[r][v]);
}

/* a's element (r, k) is at r * row_step + k * depth_step. b is fp32 or, with *bf16*, bf16. */
INLINE void multiply_any(const float *a, int64_t row_step, int64_t depth_step, const void *b,
                         int64_t b_step, float *c, int64_t c_step, int rows, int depth,
                         int columns, int bf16) {
  for (int n = 0; n < columns; n += 2 * LANES) {
    const void *right = (const uint8_t *)b + n * (bf16 ? 2 : 4);
    int r = 0, two = columns - n >= 2 * LANES;
#define STEP(count) \
  for (; r + count <= rows; r += count) { \
    const float *left = a + r * row_step; \
    float *out = c + r * c_step + n; \
    if (two) \
      multiply_block(left, row_step, depth_step, right, b_step, out, c_step, count, depth, 2, bf16); \
    else \
      multiply_block(left, row_step, depth_step, right, b_step, out, c_step, count, depth, 1, bf16); \
  }
#if MULTIPLY_ROWS > 4
    STEP(8)
#endif
    STEP(4)
    STEP(2)
    STEP(1)
#undef STEP
  }
}

static void multiply(const float *a, int64_t row_step, int64_t depth_step, const float *b,
                     int64_t b_step, float *c, int64_t c_step, int rows, int depth, int columns) {
  multiply_any(a, row_step, depth_step, b, b_step, c, c_step, rows, depth, columns, 0);
}

static void multiply_bf16(const float *a, int64_t row_step, int64_t depth_step, const uint16_t *b,
                          int64_t b_step, float *c, int64_t c_step, int rows, int depth,
                          int columns) {
  multiply_any(a, row_step, depth_step, b, b_step, c, c_step, rows, depth, columns, 1);
}
