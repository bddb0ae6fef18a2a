/* The packed formats: how GGUF's blocks are read, and the tiles that products run over.

   A tile is 16 rows (outputs) by 256 inputs, the last of a row perhaps fewer; tiles follow each
   other along the inputs, then along the rows, so that a product reads one stream. It begins with
   the scales and goes on with blocks of 32 inputs, each a few bit planes. A plane of b bits is
   2 * b vectors of 64 bytes: byte 4 r + i of vector v is about row r and inputs 4 j + i, for the
   8 / b values of j that are v, v + 1 ... (see `spread`). Rows beyond the last are zero. */

enum { P1 = 1, P2 = 2, P4 = 4, P8 = 8 };

/* Scales of a tile, halves being fp16 and [16] one a row:
   DIRECT      d[blocks][16]
   DIRECT_MIN  d[blocks][16], m[blocks][16]
   SUPER       d[16], int8 scale[256 / group][16]
   SUPER_MIN   d[16], dmin[16], int8 scale[256 / group][16], int8 min[256 / group][16] */
enum { DIRECT, DIRECT_MIN, SUPER, SUPER_MIN };

/* name, GGUF's number, GGUF's inputs and bytes a block, planes, values come from the table,
   inputs a scale, scales, what is subtracted from the stored value */
#define FORMATS(X) \
  X(q4_0, 2, 32, 18, P4, 0, 32, DIRECT, 8) \
  X(q4_1, 3, 32, 20, P4, 0, 32, DIRECT_MIN, 0) \
  X(q5_0, 6, 32, 22, P4 | P1, 0, 32, DIRECT, 16) \
  X(q5_1, 7, 32, 24, P4 | P1, 0, 32, DIRECT_MIN, 0) \
  X(q8_0, 8, 32, 34, P8, 0, 32, DIRECT, 128) \
  X(q2_k, 10, 256, 84, P2, 0, 16, SUPER_MIN, 0) \
  X(q3_k, 11, 256, 110, P2 | P1, 0, 16, SUPER, 4) \
  X(q4_k, 12, 256, 144, P4, 0, 32, SUPER_MIN, 0) \
  X(q5_k, 13, 256, 176, P4 | P1, 0, 32, SUPER_MIN, 0) \
  X(q6_k, 14, 256, 210, P4 | P2, 0, 16, SUPER, 32) \
  X(iq4_nl, 20, 32, 18, P4, 1, 32, DIRECT, 128) \
  X(iq4_xs, 23, 256, 136, P4, 1, 32, SUPER, 128)

typedef struct {
  int id, block, bytes, planes, table, group, scales, offset;
} Format;

static const Format formats[] = {
#define X(name, ...) {__VA_ARGS__},
    FORMATS(X)
#undef X
};
#define FORMAT_COUNT ((int)(sizeof formats / sizeof *formats))

static int format_index(int64_t id) {
  for (int i = 0; i < FORMAT_COUNT; i++)
    if (formats[i].id == id) return i;
  return -1;
}

/* IQ4's sixteen values plus 128. */
static const uint8_t iq4_values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                       129, 141, 153, 166, 181, 197, 217, 241};

#define TILE 256
#define ROWS 16

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE int64_t scale_bytes(int scales, int group, int64_t blocks) {
  int64_t each = scales == DIRECT       ? 32 * blocks
                 : scales == DIRECT_MIN ? 64 * blocks
                 : scales == SUPER      ? 32 + TILE / group * 16
                                        : 64 + TILE / group * 32;
  return round_up(each, 64);
}
INLINE int64_t block_bytes(int planes) { return 64 * planes; }
INLINE int64_t tile_bytes(int planes, int scales, int group, int64_t blocks) {
  return scale_bytes(scales, group, blocks) + block_bytes(planes) * blocks;
}
static int64_t group_bytes(const Format *f, int64_t inputs) {
  int64_t whole = inputs / TILE, rest = inputs % TILE / 32;
  int64_t bytes = whole * tile_bytes(f->planes, f->scales, f->group, TILE / 32);
  return rest ? bytes + tile_bytes(f->planes, f->scales, f->group, rest) : bytes;
}

/* Up to 256 inputs of one row, unpacked: stored values (or table indices) and scales. */
typedef struct {
  uint8_t value[TILE];
  uint16_t d[8], m[8]; /* of each block of 32, or d[0] and m[0] of all */
  int8_t scale[16], min[16];
} Row;

INLINE uint16_t half_at(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static void k_scales(const uint8_t *p, Row *row) {
  for (int i = 0; i < 4; i++) {
    row->scale[i] = (int8_t)(p[i] & 63);
    row->min[i] = (int8_t)(p[4 + i] & 63);
    row->scale[4 + i] = (int8_t)((p[8 + i] & 15) | (p[i] >> 2 & 48));
    row->min[4 + i] = (int8_t)(p[8 + i] >> 4 | (p[4 + i] >> 2 & 48));
  }
}

/* Formats of 32 inputs: fp16 d, perhaps fp16 m, perhaps 32 high bits, then nibbles or bytes. */
static void read_small(const Format *f, const uint8_t *p, int b, Row *row) {
  uint8_t *value = row->value + 32 * b;
  row->d[b] = half_at(p);
  p += 2;
  if (f->scales == DIRECT_MIN) {
    row->m[b] = half_at(p);
    p += 2;
  }
  if (f->planes == P8) {
    for (int i = 0; i < 32; i++) value[i] = (uint8_t)(p[i] ^ 0x80);
    return;
  }
  const uint8_t *high = p;
  if (f->planes & P1) p += 4;
  for (int i = 0; i < 16; i++) {
    value[i] = p[i] & 15;
    value[16 + i] = p[i] >> 4;
  }
  if (f->planes & P1)
    for (int i = 0; i < 32; i++) value[i] |= (uint8_t)((high[i / 8] >> (i % 8) & 1) << 4);
}

static void read_q2_k(const uint8_t *p, Row *row) {
  const uint8_t *low = p + 16;
  row->d[0] = half_at(p + 80);
  row->m[0] = half_at(p + 82);
  for (int i = 0; i < 16; i++) {
    row->scale[i] = (int8_t)(p[i] & 15);
    row->min[i] = (int8_t)(p[i] >> 4);
  }
  for (int i = 0; i < 256; i++) row->value[i] = low[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
}

static void read_q3_k(const uint8_t *p, Row *row) {
  const uint8_t *low = p + 32, *scales = p + 96;
  row->d[0] = half_at(p + 108);
  for (int i = 0; i < 16; i++) {
    int bits = (scales[i % 8] >> i / 8 * 4 & 15) | (scales[8 + i % 4] >> i / 4 * 2 & 3) << 4;
    row->scale[i] = (int8_t)(bits - 32);
  }
  for (int i = 0; i < 256; i++) {
    int two = low[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
    row->value[i] = (uint8_t)(two | (p[i % 32] >> i / 32 & 1) << 2);
  }
}

static void read_q4_k(const uint8_t *p, Row *row, int five) {
  const uint8_t *high = p + 16, *low = five ? p + 48 : p + 16;
  row->d[0] = half_at(p);
  row->m[0] = half_at(p + 2);
  k_scales(p + 4, row);
  for (int i = 0; i < 256; i++) {
    int value = low[i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
    row->value[i] = (uint8_t)(five ? value | (high[i % 32] >> i / 32 & 1) << 4 : value);
  }
}

static void read_q6_k(const uint8_t *p, Row *row) {
  const uint8_t *high = p + 128;
  row->d[0] = half_at(p + 208);
  memcpy(row->scale, p + 192, 16);
  for (int i = 0; i < 256; i++) {
    int low = p[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15;
    row->value[i] = (uint8_t)(low | (high[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3) << 4);
  }
}

static void read_iq4_xs(const uint8_t *p, Row *row) {
  int high = half_at(p + 2);
  row->d[0] = half_at(p);
  for (int b = 0; b < 8; b++) {
    int bits = (p[4 + b / 2] >> b % 2 * 4 & 15) | (high >> 2 * b & 3) << 4;
    row->scale[b] = (int8_t)(bits - 32);
  }
  for (int i = 0; i < 256; i++)
    row->value[i] = p[8 + i / 32 * 16 + i % 16] >> i / 16 % 2 * 4 & 15;
}

/* The *blocks* blocks of 32 inputs from input 256 * *tile* on, of the row that begins at *raw*. */
static void read_row(const Format *f, const uint8_t *raw, int64_t tile, int blocks, Row *row) {
  if (f->block == 32) {
    raw += tile * 8 * f->bytes;
    for (int b = 0; b < blocks; b++) read_small(f, raw + b * f->bytes, b, row);
    return;
  }
  raw += tile * f->bytes;
  switch (f->id) {
    case 10: read_q2_k(raw, row); break;
    case 11: read_q3_k(raw, row); break;
    case 12: read_q4_k(raw, row, 0); break;
    case 13: read_q4_k(raw, row, 1); break;
    case 14: read_q6_k(raw, row); break;
    default: read_iq4_xs(raw, row);
  }
}

/* Put *value* (of *bits* bits) of row r and input k, within a block, where its plane has it. */
INLINE void spread(uint8_t *plane, int bits, int r, int k, int value) {
  int j = k / 4, shared = 8 / bits;
  plane[j / shared * 64 + r * 4 + k % 4] |= (uint8_t)(value << j % shared * bits);
}

static void write_row(const Format *f, const Row *row, int r, int blocks, uint8_t *tile) {
  uint16_t *half = (uint16_t *)(void *)tile;
  if (f->scales == DIRECT || f->scales == DIRECT_MIN) {
    for (int b = 0; b < blocks; b++) {
      half[b * 16 + r] = row->d[b];
      if (f->scales == DIRECT_MIN) half[(blocks + b) * 16 + r] = row->m[b];
    }
  } else {
    int count = TILE / f->group, minimum = f->scales == SUPER_MIN;
    uint8_t *scale = tile + (minimum ? 64 : 32), *min = scale + count * 16;
    half[r] = row->d[0];
    if (minimum) half[16 + r] = row->m[0];
    for (int i = 0; i < count; i++) {
      scale[i * 16 + r] = (uint8_t)row->scale[i];
      if (minimum) min[i * 16 + r] = (uint8_t)row->min[i];
    }
  }
  uint8_t *plane = tile + scale_bytes(f->scales, f->group, blocks);
  for (int b = 0; b < blocks; b++) {
    const uint8_t *value = row->value + 32 * b;
    int low = 0; /* bits that are already written */
    for (int bits = P8; bits; bits /= 2) {
      if (!(f->planes & bits)) continue;
      for (int k = 0; k < 32; k++)
        spread(plane, bits, r, k, value[k] >> low & ((1 << bits) - 1));
      low += bits;
      plane += 64 * bits;
    }
  }
}

int64_t cortex_packed_bytes(int64_t id, int64_t rows, int64_t inputs) {
  int i = format_index(id);
  if (i < 0 || rows < 1 || inputs < 1 || inputs % formats[i].block) return -1;
  return (rows + ROWS - 1) / ROWS * group_bytes(&formats[i], inputs);
}

typedef struct {
  const Format *format;
  const uint8_t *raw;
  uint8_t *out;
  int64_t rows, inputs;
} Pack;

static void pack_groups(const void *what, int64_t first, int64_t last, int thread) {
  const Pack *p = what;
  const Format *f = p->format;
  int64_t rows = p->rows, inputs = p->inputs;
  int64_t stride = inputs / f->block * f->bytes, bytes = group_bytes(f, inputs);
  (void)thread;
  for (int64_t g = first; g < last; g++) {
    uint8_t *tile = p->out + g * bytes;
    for (int64_t t = 0; t * TILE < inputs; t++) {
      int64_t left = inputs - t * TILE;
      int blocks = left < TILE ? (int)left / 32 : TILE / 32;
      for (int r = 0; r < ROWS && g * ROWS + r < rows; r++) {
        Row row;
        read_row(f, p->raw + (g * ROWS + r) * stride, t, blocks, &row);
        write_row(f, &row, r, blocks, tile);
      }
      tile += tile_bytes(f->planes, f->scales, f->group, blocks);
    }
  }
}

/* GGUF's rows at *raw* to tiles at *out*, `cortex_packed_bytes` long and zero. */
void cortex_pack(int64_t id, int64_t rows, int64_t inputs, const uint8_t *raw, uint8_t *out,
                 int64_t threads) {
  Pack pack = {&formats[format_index(id)], raw, out, rows, inputs};
  share_out((rows + ROWS - 1) / ROWS, 16, threads, pack_groups, &pack);
}

static void row_values(const Format *f, const Row *row, int blocks, float *out) {
  int super = f->scales == SUPER || f->scales == SUPER_MIN;
  for (int k = 0; k < 32 * blocks; k++) {
    int b = super ? 0 : k / 32, value = row->value[k];
    float d = float_of_half(row->d[b]);
    float m = f->scales == DIRECT || f->scales == SUPER ? 0 : float_of_half(row->m[b]);
    if (super) {
      d *= row->scale[k / f->group];
      m *= -(float)row->min[k / f->group];
    }
    out[k] = d * (float)((f->table ? iq4_values[value] : value) - f->offset);
    if (f->scales == DIRECT_MIN || f->scales == SUPER_MIN) out[k] += m;
  }
}

typedef struct {
  const Format *format;
  const uint8_t *raw;
  const int64_t *ids;
  void *out;
  int64_t inputs;
  int bf16;
} Embed;

static void embed_rows(const void *what, int64_t first, int64_t last, int thread) {
  const Embed *e = what;
  const Format *f = e->format;
  int64_t inputs = e->inputs, stride = inputs / f->block * f->bytes;
  (void)thread;
  for (int64_t i = first; i < last; i++)
    for (int64_t t = 0; t * TILE < inputs; t++) {
      int64_t left = inputs - t * TILE;
      int blocks = left < TILE ? (int)left / 32 : TILE / 32;
      Row row;
      float values[TILE];
      memset(&row, 0, sizeof row);
      read_row(f, e->raw + e->ids[i] * stride, t, blocks, &row);
      row_values(f, &row, blocks, values);
      for (int k = 0; k < 32 * blocks; k++)
        put(e->out, i * inputs + t * TILE + k, values[k], e->bf16);
    }
}

/* Rows *ids* of GGUF's *rows* at *raw* to `(count, inputs)` bf16 or fp32: the formula's fp32
   result, rounded. 1 where an id is not that of a row, and then nothing is written; else 0. */
int64_t cortex_embed(int64_t id, int64_t rows, int64_t inputs, const uint8_t *raw,
                     const int64_t *ids, int64_t count, void *out, int64_t bf16, int64_t threads) {
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= rows) return 1;
  Embed embed = {&formats[format_index(id)], raw, ids, out, inputs, (int)bf16};
  share_out(count, 4, threads, embed_rows, &embed);
  return 0;
}
