/* Products with packed weights: y (tokens, rows) = x (tokens, inputs) W^T.

   For bf16 activations x is rounded to 8 bits with a scale for every 32 inputs (relative error of
   a product about 0.5 %, bf16's own rounding being 0.4 %) and multiplied in integers; for fp32 the
   weights are restored exactly and multiplied in fp32. A row of x has the same result whatever
   rows come with it and however many threads there are, but for contraction by the compiler in
   plain C. */

#define CHUNK 128 /* rows of x at a time: quantised they stay in the L2 cache */
#define MAX_TOKENS 8

/* How many of *left* rows share a pass: what there are kernels for. */
INLINE int share(int64_t left) {
  int count = TOKENS;
  while (count > left) count /= 2;
  return count;
}

/* One shared pass of x: for block b and row m of it, 32 values at q[(b * count + m) * 32], their
   scale at s[b * count + m]; for each scale of the weights in the block, first[] to begin an
   integer sum with, and sums[], the sum of the values as floats, negative where mins subtract. */
typedef struct {
  int8_t *q;
  float *s;
  int32_t *first;
  float *sums;
} Rounded;

static int64_t rounded_bytes(int64_t inputs, int64_t count) {
  return count * (inputs + inputs / 32 * 4 + inputs / 16 * 8) + 256;
}

static Rounded rounded_at(uint8_t *memory, int64_t inputs, int64_t count) {
  Rounded x;
  x.q = (int8_t *)memory;
  x.s = (float *)(void *)(memory + count * inputs);
  x.first = (int32_t *)(void *)(x.s + count * (inputs / 32));
  x.sums = (float *)(void *)(x.first + count * (inputs / 16));
  return x;
}

INLINE void round_block(const void *x, int64_t at, int bf16, int group, int offset, float sign,
                        Rounded out, int64_t b, int m, int count) {
  vf part[32 / LANES];
  vi size = vi_set1(0);
  for (int i = 0; i < 32 / LANES; i++) {
    part[i] = vf_get(x, at + i * LANES, bf16);
    size = vi_max(size, vi_and(vf_bits(part[i]), vi_set1(0x7fffffff)));
  }
  float d = float_of_bits((uint32_t)vi_highest(size)) / 127;
  float inverse = d > 0 ? 1 / d : 0;
  if (inverse > 3e38f) inverse = 0; /* d is so small that nothing is lost */
  int8_t *q = out.q + (b * count + m) * 32;
  for (int h = 0; h < 32 / group; h++) {
    vi sum = vi_set1(0);
    for (int i = h * group / LANES; i < (h + 1) * group / LANES; i++) {
      vi whole = vf_round(vf_mul(part[i], vf_set1(inverse)));
      vi_store_i8(q + i * LANES, whole);
      sum = vi_add(sum, whole);
    }
    int64_t slot = (b * (32 / group) + h) * count + m;
    int32_t total = vi_sum(sum);
    out.first[slot] = -offset * total;
    out.sums[slot] = sign * d * (float)total;
  }
  out.s[b * count + m] = d;
}

static void round_rows(const Format *f, const void *x, int64_t inputs, int count, Rounded out) {
  int wide = f->planes == P8 || f->table;
  int offset = wide ? WIDE_OFFSET : f->offset;
  float sign = f->scales == SUPER_MIN ? -1.0f : 1.0f;
  for (int m = 0; m < count; m++)
    for (int64_t b = 0; b < inputs / 32; b++) {
      if (f->group == 32) round_block(x, m * inputs + b * 32, 1, 32, offset, sign, out, b, m, count);
      else round_block(x, m * inputs + b * 32, 1, 16, offset, sign, out, b, m, count);
    }
}

/* The eight vectors of a block: byte 4 r + i of v[j] is row r's value of input 4 j + i. */
INLINE void unpack(int planes, int table, const uint8_t *p, vb v[8]) {
  if (planes == P8) {
    for (int j = 0; j < 8; j++) v[j] = vb_load(p + 64 * j);
    return;
  }
  vb low = vb_set1(planes & P4 ? 15 : 3);
  if (planes & P4) {
    for (int j = 0; j < 4; j++) {
      vb two = vb_load(p + 64 * j);
      v[2 * j] = vb_and(two, low);
      v[2 * j + 1] = vb_and(vb_shr(two, 4), low);
    }
    p += 256;
  }
  if (planes & P2) {
    for (int j = 0; j < 8; j++) {
      vb four = vb_load(p + 64 * (j / 4));
      int i = j % 4;
      if (planes & P4) {
        vb moved = i == 0 ? vb_shl(four, 4) : i == 1 ? vb_shl(four, 2)
                                          : i == 2 ? four
                                                   : vb_shr(four, 2);
        v[j] = vb_or(v[j], vb_and(moved, vb_set1(48)));
      } else {
        v[j] = vb_and(i ? vb_shr(four, 2 * i) : four, low);
      }
    }
    p += 128;
  }
  if (planes & P1) {
    int place = planes & P4 ? 4 : 2;
    vb eight = vb_load(p);
    for (int j = 0; j < 8; j++) {
      vb moved = j < place ? vb_shl(eight, place - j) : j > place ? vb_shr(eight, j - place) : eight;
      v[j] = vb_or(v[j], vb_and(moved, vb_set1(1 << place)));
    }
  }
  if (table)
    for (int j = 0; j < 8; j++) v[j] = vb_look_up(iq4_values, v[j]);
}

/* The scale of group i (a block has 32 / group of them), and what is added for its min. */
INLINE vf scale_of(int scales, int group, const uint8_t *tile, int blocks, int i, int lane, vf *min) {
  const uint16_t *half = (const uint16_t *)(const void *)tile;
  if (scales == DIRECT) return vf_load_half(half + i * 16 + lane);
  if (scales == DIRECT_MIN) {
    *min = vf_load_half(half + (blocks + i) * 16 + lane);
    return vf_load_half(half + i * 16 + lane);
  }
  const int8_t *bytes = (const int8_t *)tile + (scales == SUPER_MIN ? 64 : 32);
  if (scales == SUPER_MIN)
    *min = vf_mul(vf_load_half(half + 16 + lane),
                  vf_load_i8(bytes + TILE / group * 16 + i * 16 + lane));
  return vf_mul(vf_load_half(half + lane), vf_load_i8(bytes + i * 16 + lane));
}

#define AHEAD 1024 /* bytes: far enough for memory to answer, near enough to stay in the L1 cache */

/* acc[m][16] += the products of *count* rows of x with a tile's 16; x points at its first block. */
INLINE void dot_tile(int planes, int table, int group, int scales, int offset, int count,
                     const uint8_t *tile, int blocks, Rounded x, float *acc) {
  const int halves = 32 / group, steps = 8 / halves;
  const int wide = planes == P8 || table;
  const int starts = (wide ? WIDE_OFFSET : offset) != 0;
  const int minimum = scales == DIRECT_MIN || scales == SUPER_MIN;
  for (int part = 0; part < PARTS; part++) {
    const uint8_t *p = tile + scale_bytes(scales, group, blocks) + part * 4 * LANES;
    vf sum[MAX_TOKENS];
UNROLL
    for (int m = 0; m < count; m++) sum[m] = vf_load(acc + m * 16 + part * LANES);
    for (int b = 0; b < blocks; b++, p += block_bytes(planes)) {
      if (part == 0)
        for (int line = 0; line < planes; line++) __builtin_prefetch(p + AHEAD + 64 * line);
      vb v[8];
      unpack(planes, table, p, v);
      for (int h = 0; h < halves; h++) {
        vf min = vf_zero();
        int i = b * halves + h;
        vf scale = scale_of(scales, group, tile, blocks, i, part * LANES, &min);
UNROLL
        for (int m = 0; m < count; m++) {
          const int8_t *q = x.q + (b * count + m) * 32 + h * group;
          vi whole = starts ? vi_set1(x.first[i * count + m]) : vi_set1(0);
          for (int j = 0; j < steps; j++)
            whole = wide ? dot_wide(whole, v[h * steps + j], q + 4 * j)
                         : dot_narrow(whole, v[h * steps + j], q + 4 * j);
          sum[m] = vf_fma(vi_float(whole), vf_mul(scale, vf_set1(x.s[b * count + m])), sum[m]);
          if (minimum) sum[m] = vf_fma(min, vf_set1(x.sums[i * count + m]), sum[m]);
        }
      }
    }
UNROLL
    for (int m = 0; m < count; m++) vf_store(acc + m * 16 + part * LANES, sum[m]);
  }
}

typedef void DotTile(const uint8_t *tile, int blocks, Rounded x, float *acc);

#define DEFINE(name, count, planes, table, group, scales, offset) \
  static void dot_##name##_##count(const uint8_t *tile, int blocks, Rounded x, float *acc) { \
    dot_tile(planes, table, group, scales, offset, count, tile, blocks, x, acc); \
  }
#define X(name, id, block, bytes, ...) \
  DEFINE(name, 1, __VA_ARGS__) \
  DEFINE(name, 2, __VA_ARGS__) \
  DEFINE(name, 4, __VA_ARGS__)
FORMATS(X)
#undef X
#if TOKENS > 4
#define X(name, id, block, bytes, ...) DEFINE(name, 8, __VA_ARGS__)
FORMATS(X)
#undef X
#define WIDEST(name) dot_##name##_8
#else
#define WIDEST(name) dot_##name##_4
#endif
#undef DEFINE

/* By format, then by the logarithm of how many rows share the pass. */
static DotTile *const dot_tiles[][4] = {
#define X(name, ...) {dot_##name##_1, dot_##name##_2, dot_##name##_4, WIDEST(name)},
    FORMATS(X)
#undef X
};

/* *blocks* blocks of a tile to fp32 `(32 * blocks, 16)`, exactly. */
INLINE void restore_tile(int planes, int table, int group, int scales, int offset,
                         const uint8_t *tile, int blocks, float *out) {
  const int halves = 32 / group, steps = 8 / halves;
  for (int part = 0; part < PARTS; part++) {
    const uint8_t *p = tile + scale_bytes(scales, group, blocks) + part * 4 * LANES;
    for (int b = 0; b < blocks; b++, p += block_bytes(planes)) {
      vb v[8];
      unpack(planes, table, p, v);
      for (int j = 0; j < 8; j++) {
        vf min = vf_zero();
        vf scale = scale_of(scales, group, tile, blocks, b * halves + j / steps, part * LANES, &min);
        if (scales == SUPER_MIN) min = vf_sub(vf_zero(), min);
        for (int i = 0; i < 4; i++) {
          vi value = vi_and(vi_shr(vb_lanes(v[j]), 8 * i), vi_set1(255));
          vf weight = vf_mul(scale, vi_float(vi_add(value, vi_set1(-offset))));
          if (scales == DIRECT_MIN || scales == SUPER_MIN) weight = vf_add(weight, min);
          vf_store(out + (b * 32 + j * 4 + i) * 16 + part * LANES, weight);
        }
      }
    }
  }
}

typedef void RestoreTile(const uint8_t *tile, int blocks, float *out);
#define X(name, id, block, bytes, ...) \
  static void restore_##name(const uint8_t *tile, int blocks, float *out) { \
    restore_tile(__VA_ARGS__, tile, blocks, out); \
  }
FORMATS(X)
#undef X
static RestoreTile *const restore_tiles[] = {
#define X(name, ...) restore_##name,
    FORMATS(X)
#undef X
};

/* The results of one row of x for the 16 rows from *first* on. */
INLINE void finish(const float *acc, const void *bias, int64_t first, int64_t rows, void *y,
                   int64_t row, int bf16) {
  int count = rows - first < ROWS ? (int)(rows - first) : ROWS;
  float out[ROWS];
  for (int r = 0; r < count; r++) out[r] = acc[r] + (bias ? get(bias, first + r, bf16) : 0);
  if (count == ROWS) {
    for (int part = 0; part < PARTS; part++)
      vf_put(y, row * rows + first + part * LANES, vf_load(out + part * LANES), bf16);
  } else {
    for (int r = 0; r < count; r++) put(y, row * rows + first + r, out[r], bf16);
  }
}

static void rounded_group(int index, const uint8_t *tiles, int64_t rows, int64_t inputs, int64_t g,
                          uint8_t *memory, int64_t tokens, const void *bias, void *y, int64_t row) {
  const Format *f = &formats[index];
  int64_t stride = rounded_bytes(inputs, TOKENS), whole = tile_bytes(f->planes, f->scales, f->group, 8);
  int count;
  for (int64_t m = 0; m < tokens; m += count, memory += stride) {
    count = share(tokens - m);
    Rounded x = rounded_at(memory, inputs, count);
    DotTile *dot = dot_tiles[index][count == 8 ? 3 : count / 2];
    float acc[MAX_TOKENS * ROWS] = {0};
    const uint8_t *tile = tiles;
    int halves = 32 / f->group;
    for (int64_t left = inputs; left > 0; left -= TILE, tile += whole) {
      int blocks = left < TILE ? (int)left / 32 : TILE / 32;
      dot(tile, blocks, x, acc);
      x.q += count * TILE;
      x.s += count * 8;
      x.first += count * 8 * halves;
      x.sums += count * 8 * halves;
    }
    for (int i = 0; i < count; i++)
      finish(acc + i * ROWS, bias, g * ROWS, rows, y, row + m + i, 1);
  }
}

static void exact_group(int index, const uint8_t *tiles, int64_t rows, int64_t inputs, int64_t g,
                        const float *x, int64_t tokens, const void *bias, void *y, int64_t row) {
  const Format *f = &formats[index];
  float weights[TILE * ROWS], acc[CHUNK * ROWS] = {0};
  int64_t whole = tile_bytes(f->planes, f->scales, f->group, 8);
  for (int64_t k = 0; k < inputs; k += TILE, tiles += whole) {
    int depth = inputs - k < TILE ? (int)(inputs - k) : TILE;
    restore_tiles[index](tiles, depth / 32, weights);
    multiply(x + k, inputs, 1, weights, ROWS, acc, ROWS, (int)tokens, depth, ROWS);
  }
  for (int64_t i = 0; i < tokens; i++)
    finish(acc + i * ROWS, bias, g * ROWS, rows, y, row + i, 0);
}
