/* What is done row by row: norms, gating, and placing queries, keys and values. */

#define SMALL 32768 /* elements: fewer are done sooner by one thread than shared out */

/* The inverse root mean square of *width* elements from *at*. */
INLINE float inverse_rms(const void *x, int64_t at, int64_t width, float eps, int bf16) {
  vf sums[2] = {vf_zero(), vf_zero()};
  int64_t i = 0;
  for (; i + 2 * LANES <= width; i += 2 * LANES)
    for (int j = 0; j < 2; j++) {
      vf value = vf_get(x, at + i + j * LANES, bf16);
      sums[j] = vf_fma(value, value, sums[j]);
    }
  float sum = vf_sum(vf_add(sums[0], sums[1]));
  for (; i < width; i++) {
    float value = get(x, at + i, bf16);
    sum += value * value;
  }
  return 1.0f / sqrtf(sum / (float)width + eps);
}

INLINE vf vf_rounded(vf a, int bf16) {
  if (!bf16) return a;
  uint16_t kept[LANES];
  vf_store_bf16(kept, a);
  return vf_load_bf16(kept);
}

/* y = round(x / rms(x)) * weight, for one row; y may be fp32 where x is bf16. */
INLINE void norm_row(const void *x, int64_t at, const void *weight, void *y, int64_t to,
                     int64_t width, float eps, int bf16) {
  float inverse = inverse_rms(x, at, width, eps, bf16);
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    vf quotient = vf_mul(vf_get(x, at + i, bf16), vf_set1(inverse));
    vf_put(y, to + i, vf_mul(vf_rounded(quotient, bf16), vf_get(weight, i, bf16)), bf16);
  }
  for (; i < width; i++) {
    float quotient = rounded(get(x, at + i, bf16) * inverse, bf16);
    put(y, to + i, quotient * get(weight, i, bf16), bf16);
  }
}

INLINE void norm_rows(const void *x, const void *delta, const void *weight, void *sum, void *y,
                      int64_t rows, int64_t width, float eps, int bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > SMALL)
  for (int64_t r = 0; r < rows; r++) {
    int64_t at = r * width, i = 0;
    if (delta) {
      for (; i + LANES <= width; i += LANES)
        vf_put(sum, at + i, vf_add(vf_get(x, at + i, bf16), vf_get(delta, at + i, bf16)), bf16);
      for (; i < width; i++)
        put(sum, at + i, get(x, at + i, bf16) + get(delta, at + i, bf16), bf16);
    }
    norm_row(delta ? sum : x, at, weight, y, at, width, eps, bf16);
  }
}

/* `(rows, width)`: sum = x + delta, y = round(sum / rms(sum)) * weight. Where *delta* is NULL the
   sum is x and is not written. */
void cortex_norm(const void *x, const void *delta, const void *weight, void *sum, void *y,
                 int64_t rows, int64_t width, float eps, int64_t bf16, int64_t threads) {
  if (bf16) norm_rows(x, delta, weight, sum, y, rows, width, eps, 1, (int)threads);
  else norm_rows(x, delta, weight, sum, y, rows, width, eps, 0, (int)threads);
}

INLINE void silu_row(const void *both, int64_t at, void *y, int64_t to, int64_t inner, int bf16) {
  int64_t i = 0;
  for (; i + LANES <= inner; i += LANES) {
    vf gate = vf_get(both, at + i, bf16);
    vf below = vf_add(vf_set1(1), vf_exp(vf_sub(vf_zero(), gate)));
    vf silu = vf_rounded(vf_div(gate, below), bf16);
    vf_put(y, to + i, vf_mul(silu, vf_get(both, at + inner + i, bf16)), bf16);
  }
  for (; i < inner; i++) {
    float gate = get(both, at + i, bf16);
    float silu = rounded(gate / (1.0f + expf(-gate)), bf16);
    put(y, to + i, silu * get(both, at + inner + i, bf16), bf16);
  }
}

INLINE void silu_rows(const void *both, void *y, int64_t rows, int64_t inner, int bf16,
                      int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * inner > SMALL)
  for (int64_t r = 0; r < rows; r++) silu_row(both, r * 2 * inner, y, r * inner, inner, bf16);
}

/* `(rows, 2 * inner)` to `(rows, inner)`: round(silu(first half)) times the second half. */
void cortex_silu_mul(const void *both, void *y, int64_t rows, int64_t inner, int64_t bf16,
                     int64_t threads) {
  if (bf16) silu_rows(both, y, rows, inner, 1, (int)threads);
  else silu_rows(both, y, rows, inner, 0, (int)threads);
}

/* Dimension i turns with dimension i + half by the angle whose cosine and sine are c[i], s[i]. */
INLINE void turn(const void *x, int64_t at, const float *c, const float *s, void *y, int64_t to,
                 int64_t half, int bf16) {
  int64_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    vf a = vf_get(x, at + i, bf16), b = vf_get(x, at + half + i, bf16);
    vf cos = vf_load(c + i), sin = vf_load(s + i);
    vf_put(y, to + i, vf_sub(vf_mul(a, cos), vf_mul(b, sin)), bf16);
    vf_put(y, to + half + i, vf_add(vf_mul(b, cos), vf_mul(a, sin)), bf16);
  }
  for (; i < half; i++) {
    float a = get(x, at + i, bf16), b = get(x, at + half + i, bf16);
    put(y, to + i, a * c[i] - b * s[i], bf16);
    put(y, to + half + i, b * c[i] + a * s[i], bf16);
  }
}

#define MAX_DIM 1024

/* One token's heads: perhaps normed, then turned. */
INLINE void place_heads(const void *qkv, int64_t at, const void *weight, const float *c,
                        const float *s, float eps, void *to, int64_t place, int64_t heads,
                        int64_t dim, int bf16) {
  float normed[MAX_DIM];
  for (int64_t h = 0; h < heads; h++, at += dim, place += dim) {
    if (weight) {
      norm_row(qkv, at, weight, normed, 0, dim, eps, bf16);
      turn(normed, 0, c, s, to, place, dim / 2, bf16);
    } else {
      turn(qkv, at, c, s, to, place, dim / 2, bf16);
    }
  }
}

INLINE void place_rows(const void *qkv, const void *q_norm, const void *k_norm, const float *cos,
                       const float *sin, float eps, const int64_t *slots, void *keys, void *values,
                       void *q, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                       int bf16, int threads) {
  int64_t width = (heads + 2 * kv_heads) * dim, size = bf16 ? 2 : 4;
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * width > SMALL)
  for (int64_t t = 0; t < tokens; t++) {
    int64_t at = t * width, slot = slots[t] * kv_heads * dim;
    const float *c = cos + t * (dim / 2), *s = sin + t * (dim / 2);
    place_heads(qkv, at, q_norm, c, s, eps, q, t * heads * dim, heads, dim, bf16);
    at += heads * dim;
    place_heads(qkv, at, k_norm, c, s, eps, keys, slot, kv_heads, dim, bf16);
    at += kv_heads * dim;
    memcpy((uint8_t *)values + slot * size, (const uint8_t *)qkv + at * size,
           (size_t)(kv_heads * dim * size));
  }
}

/* qkv `(tokens, (heads + 2 kv_heads) dim)`; norm weights `(dim,)` or NULL; cos and sin fp32
   `(tokens, dim / 2)`. Turned queries go to q `(tokens, heads, dim)`, turned keys and the values to
   row slots[t] of the caches `(slots, kv_heads, dim)`. dim is even and at most 1024. */
void cortex_place(const void *qkv, const void *q_norm, const void *k_norm, const float *cos,
                  const float *sin, float eps, const int64_t *slots, void *keys, void *values,
                  void *q, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                  int64_t bf16, int64_t threads) {
  if (bf16)
    place_rows(qkv, q_norm, k_norm, cos, sin, eps, slots, keys, values, q, tokens, heads, kv_heads,
               dim, 1, (int)threads);
  else
    place_rows(qkv, q_norm, k_norm, cos, sin, eps, slots, keys, values, q, tokens, heads, kv_heads,
               dim, 0, (int)threads);
}
