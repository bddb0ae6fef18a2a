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

typedef struct {
  const void *x, *delta, *weight;
  void *sum, *y;
  int64_t width;
  float eps;
  int bf16;
} Norm;

INLINE void norm_some(const Norm *n, int64_t first, int64_t last, int bf16) {
  int64_t width = n->width;
  for (int64_t r = first; r < last; r++) {
    int64_t at = r * width, i = 0;
    if (n->delta) {
      for (; i + LANES <= width; i += LANES)
        vf_put(n->sum, at + i, vf_add(vf_get(n->x, at + i, bf16), vf_get(n->delta, at + i, bf16)),
               bf16);
      for (; i < width; i++)
        put(n->sum, at + i, get(n->x, at + i, bf16) + get(n->delta, at + i, bf16), bf16);
    }
    norm_row(n->delta ? n->sum : n->x, at, n->weight, n->y, at, width, n->eps, bf16);
  }
}

static void norm_rows(const void *what, int64_t first, int64_t last, int thread) {
  const Norm *n = what;
  (void)thread;
  if (n->bf16) norm_some(n, first, last, 1);
  else norm_some(n, first, last, 0);
}

/* How many of rows of *width* elements are worth a thread. */
static int64_t some_rows(int64_t width) { return SMALL / (width + 1) + 1; }

/* `(rows, width)`: sum = x + delta, y = round(sum / rms(sum)) * weight. Where *delta* is NULL the
   sum is x and is not written. */
void cortex_norm(const void *x, const void *delta, const void *weight, void *sum, void *y,
                 int64_t rows, int64_t width, float eps, int64_t bf16, int64_t threads) {
  Norm norm = {x, delta, weight, sum, y, width, eps, (int)bf16};
  share_out(rows, some_rows(width), threads, norm_rows, &norm);
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

typedef struct {
  const void *both;
  void *y;
  int64_t inner;
  int bf16;
} Gate;

static void silu_rows(const void *what, int64_t first, int64_t last, int thread) {
  const Gate *g = what;
  int64_t inner = g->inner;
  (void)thread;
  for (int64_t r = first; r < last; r++) {
    if (g->bf16) silu_row(g->both, r * 2 * inner, g->y, r * inner, inner, 1);
    else silu_row(g->both, r * 2 * inner, g->y, r * inner, inner, 0);
  }
}

/* `(rows, 2 * inner)` to `(rows, inner)`: round(silu(first half)) times the second half. */
void cortex_silu_mul(const void *both, void *y, int64_t rows, int64_t inner, int64_t bf16,
                     int64_t threads) {
  Gate gate = {both, y, inner, (int)bf16};
  share_out(rows, some_rows(inner), threads, silu_rows, &gate);
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

typedef struct {
  const void *qkv, *q_norm, *k_norm;
  const float *cos, *sin;
  const int64_t *slots;
  void *keys, *values, *q;
  int64_t heads, kv_heads, dim;
  float eps;
  int bf16;
} Place;

INLINE void place_some(const Place *p, int64_t first, int64_t last, int bf16) {
  int64_t heads = p->heads, kv_heads = p->kv_heads, dim = p->dim;
  int64_t width = (heads + 2 * kv_heads) * dim, size = bf16 ? 2 : 4;
  for (int64_t t = first; t < last; t++) {
    int64_t at = t * width, slot = p->slots[t] * kv_heads * dim;
    const float *c = p->cos + t * (dim / 2), *s = p->sin + t * (dim / 2);
    place_heads(p->qkv, at, p->q_norm, c, s, p->eps, p->q, t * heads * dim, heads, dim, bf16);
    at += heads * dim;
    place_heads(p->qkv, at, p->k_norm, c, s, p->eps, p->keys, slot, kv_heads, dim, bf16);
    at += kv_heads * dim;
    memcpy((uint8_t *)p->values + slot * size, (const uint8_t *)p->qkv + at * size,
           (size_t)(kv_heads * dim * size));
  }
}

static void place_rows(const void *what, int64_t first, int64_t last, int thread) {
  const Place *p = what;
  (void)thread;
  if (p->bf16) place_some(p, first, last, 1);
  else place_some(p, first, last, 0);
}

/* qkv `(tokens, (heads + 2 kv_heads) dim)`; norm weights `(dim,)` or NULL; cos and sin fp32
   `(tokens, dim / 2)`. Turned queries go to q `(tokens, heads, dim)`, turned keys and the values to
   row slots[t] of the caches `(slots, kv_heads, dim)`. dim is even and at most 1024. */
void cortex_place(const void *qkv, const void *q_norm, const void *k_norm, const float *cos,
                  const float *sin, float eps, const int64_t *slots, void *keys, void *values,
                  void *q, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                  int64_t bf16, int64_t threads) {
  Place place = {qkv,  q_norm, k_norm,   cos, sin, slots,    keys,
                 values, q,    heads, kv_heads, dim, eps, (int)bf16};
  share_out(tokens, some_rows((heads + 2 * kv_heads) * dim), threads, place_rows, &place);
}
