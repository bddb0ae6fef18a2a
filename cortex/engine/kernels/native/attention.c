/* Attention over the paged cache, softmax in fp32 with a running maximum.

   A row in decode is cut along its keys into segments of fixed length, so that few long sequences
   keep every thread busy and results do not depend on how many there are; the segments' results
   are merged at the end. A chunk is cut into tiles of queries, each of which reads the keys that
   it sees once, with queries along the lanes. The queries of the heads that share a key head go
   together in both. */

#define SEGMENT 512     /* keys */
#define KEYS 32         /* that are scored at a time */
#define QUERIES 64      /* queries times heads of a group, in a tile of a chunk */
#define LOWEST -1e30f   /* below every score, and finite: the difference of two is a number */

typedef struct {
  const void *q, *keys, *values;
  void *out;
  const int32_t *tables, *firsts, *lengths;
  int64_t sequences, width, decodes, heads, kv_heads, dim, block, window; /* window 0: none */
  int64_t padded;   /* dim, in whole tile vectors */
  int64_t segments; /* of the longest row in decode */
  float scale;
} Attention;

/* Where the key at position *from* is in a cache. */
INLINE int64_t place_of(const Attention *a, const int32_t *table, int64_t from, int64_t head) {
  int64_t slot = table[from / a->block] * a->block + from % a->block;
  return (slot * a->kv_heads + head) * a->dim;
}

/* Keys *from* to *from + count*, within one block, as fp32 rows of `padded`, zero beyond dim. */
INLINE const float *rows_of(const Attention *a, const void *cache, const int32_t *table,
                            int64_t from, int count, int64_t head, float *room, int64_t *step,
                            int bf16) {
  int64_t at = place_of(a, table, from, head);
  int64_t stride = a->kv_heads * a->dim;
  if (!bf16 && a->dim == a->padded) {
    *step = stride;
    return (const float *)cache + at;
  }
  *step = a->padded;
  for (int t = 0; t < count; t++, at += stride) {
    float *row = room + t * a->padded;
    int64_t i = 0;
    for (; i + LANES <= a->dim; i += LANES) vf_store(row + i, vf_get(cache, at + i, bf16));
    for (; i < a->dim; i++) row[i] = get(cache, at + i, bf16);
    for (; i < a->padded; i++) row[i] = 0;
  }
  return room;
}

/* How many keys from *from* on, before *end*, are in one block and one tile. */
INLINE int run_of(const Attention *a, int64_t from, int64_t end) {
  int64_t count = a->block - from % a->block;
  if (count > end - from) count = end - from;
  return count > KEYS ? KEYS : (int)count;
}

/* ------------------------------------------------------------------ decode */

/* For each head of a group: its query, scaled; what is gathered; scores; then two tiles of rows. */
static int64_t decode_floats(const Attention *a) {
  int64_t group = a->heads / a->kv_heads;
  return group * (2 * a->padded + KEYS) + 2 * KEYS * a->padded;
}

/* scores[h * KEYS + t] of *heads* queries, one or two, with *count* keys. */
INLINE void score(const float *q, const int heads, const void *keys, int64_t step, int count,
                  int64_t padded, float *scores, int bf16) {
  int t = 0;
  for (; t + 4 <= count; t += 4) {
    vf sum[2][4];
    for (int j = 0; j < 4; j++) sum[0][j] = sum[1][j] = vf_zero();
    for (int64_t i = 0; i < padded; i += LANES) {
      vf query[2];
      for (int h = 0; h < heads; h++) query[h] = vf_load(q + h * padded + i);
UNROLL
      for (int j = 0; j < 4; j++) {
        vf key = vf_get(keys, (t + j) * step + i, bf16);
        for (int h = 0; h < heads; h++) sum[h][j] = vf_fma(query[h], key, sum[h][j]);
      }
    }
    for (int h = 0; h < heads; h++)
      vf_sum4(scores + h * KEYS + t, sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
  }
  for (; t < count; t++)
    for (int h = 0; h < heads; h++) {
      vf sum = vf_zero();
      for (int64_t i = 0; i < padded; i += LANES)
        sum = vf_fma(vf_load(q + h * padded + i), vf_get(keys, t * step + i, bf16), sum);
      scores[h * KEYS + t] = vf_sum(sum);
    }
}

/* Scores to weights e^(score - top); the gathered row is rescaled to the new top. */
INLINE void soften(float *scores, int count, float *top, float *total, float *gathered,
                   int64_t padded) {
  for (int t = count; t < KEYS; t++) scores[t] = -INFINITY;
  vf most = vf_load(scores), sum = vf_zero();
  for (int t = LANES; t < KEYS; t += LANES) most = vf_max(most, vf_load(scores + t));
  float high = vf_highest(most);
  if (high > *top) {
    float kept = expf(*top - high);
    for (int64_t i = 0; i < padded; i += LANES)
      vf_store(gathered + i, vf_mul(vf_load(gathered + i), vf_set1(kept)));
    *total *= kept;
    *top = high;
  }
  for (int t = 0; t < KEYS; t += LANES) {
    vf weight = vf_exp(vf_sub(vf_load(scores + t), vf_set1(*top)));
    vf_store(scores + t, weight);
    sum = vf_add(sum, weight);
  }
  *total += vf_sum(sum);
}

/* What *count* keys and values add to the gathered rows of a group. */
INLINE void decode_keys(const Attention *a, const float *q, const void *k, const void *v,
                        int64_t step, int count, float *scores, float *result, int bf16) {
  int group = (int)(a->heads / a->kv_heads), g = 0;
  int64_t padded = a->padded, apart = padded + 16;
  for (; g + 2 <= group; g += 2)
    score(q + g * padded, 2, k, step, count, padded, scores + g * KEYS, bf16);
  if (g < group) score(q + g * padded, 1, k, step, count, padded, scores + g * KEYS, bf16);
  for (g = 0; g < group; g++) {
    float *gathered = result + g * apart;
    soften(scores + g * KEYS, count, gathered + padded, gathered + padded + 1, gathered, padded);
  }
  if (bf16) multiply_bf16(scores, KEYS, 1, v, step, result, apart, group, count, (int)padded);
  else multiply(scores, KEYS, 1, v, step, result, apart, group, count, (int)padded);
}

/* One row, key head and segment: top, total and gathered values of each head to *result*. */
INLINE void decode_segment(const Attention *a, int64_t row, int64_t head, int64_t segment,
                           float *room, float *result, int bf16) {
  int64_t group = a->heads / a->kv_heads, padded = a->padded, length = a->lengths[row];
  int64_t from = segment * SEGMENT, end = from + SEGMENT;
  if (a->window && from < length - a->window) from = length - a->window;
  if (end > length) end = length;
  const int32_t *table = a->tables + row * a->width;
  float *q = room, *scores = q + group * padded, *keys = scores + group * KEYS;
  float *values = keys + KEYS * padded;
  for (int64_t g = 0; g < group; g++) {
    int64_t at = ((int64_t)a->firsts[row] * a->heads + head * group + g) * a->dim;
    float *gathered = result + g * (padded + 16);
    for (int64_t i = 0; i < padded; i++)
      q[g * padded + i] = i < a->dim ? get(a->q, at + i, bf16) * a->scale : 0;
    memset(gathered, 0, (size_t)padded * 4);
    gathered[padded] = LOWEST;
    gathered[padded + 1] = 0;
  }
  for (int count; from < end; from += count) {
    count = run_of(a, from, end);
    if (bf16 && a->dim == padded) { /* as they are */
      int64_t at = place_of(a, table, from, head), step = a->kv_heads * a->dim;
      const uint16_t *k = (const uint16_t *)a->keys + at, *v = (const uint16_t *)a->values + at;
      decode_keys(a, q, k, v, step, count, scores, result, 1);
    } else {
      int64_t step;
      const float *k = rows_of(a, a->keys, table, from, count, head, keys, &step, bf16);
      const float *v = rows_of(a, a->values, table, from, count, head, values, &step, bf16);
      decode_keys(a, q, k, v, step, count, scores, result, 0);
    }
  }
}

/* The segments' results of one head, *apart* floats from each other, as one row of the output. */
INLINE void merge(const Attention *a, const float *parts, int64_t count, int64_t apart, int64_t to,
                  int bf16) {
  int64_t padded = a->padded;
  float top = LOWEST, total = 0, sum[MAX_DIM];
  for (int64_t s = 0; s < count; s++) {
    float high = parts[s * apart + padded];
    if (high > top) top = high;
  }
  memset(sum, 0, (size_t)padded * 4);
  for (int64_t s = 0; s < count; s++) {
    const float *part = parts + s * apart;
    float weight = expf(part[padded] - top);
    total += weight * part[padded + 1];
    for (int64_t i = 0; i < padded; i += LANES)
      vf_store(sum + i, vf_fma(vf_set1(weight), vf_load(part + i), vf_load(sum + i)));
  }
  for (int64_t i = 0; i < a->dim; i++) put(a->out, to + i, sum[i] / total, bf16);
}

/* ------------------------------------------------------------------ chunks */

INLINE int64_t tile_queries(const Attention *a) {
  int64_t group = a->heads / a->kv_heads;
  return group < QUERIES ? QUERIES / group : 1;
}

INLINE int64_t tile_columns(const Attention *a) {
  return round_up(tile_queries(a) * (a->heads / a->kv_heads), 16);
}

/* Queries along the lanes, scores, gathered rows, four numbers a query, two tiles of rows. */
static int64_t chunk_floats(const Attention *a) {
  int64_t columns = tile_columns(a);
  return columns * (2 * a->padded + KEYS + 4) + 2 * KEYS * a->padded;
}

/* Take out the keys that a column's query, at position place[column], does not see. */
INLINE void hide(float *scores, int64_t columns, const float *place, int64_t from, int count,
                 int64_t window) {
  for (int64_t c = 0; c < columns; c += LANES) {
    vf last = vf_load(place + c), first = vf_sub(last, vf_set1((float)(window - 1)));
    for (int t = 0; t < count; t++) {
      vf key = vf_set1((float)(from + t)), none = vf_set1(-INFINITY);
      vf seen = vf_where_less(last, key, none, vf_load(scores + t * columns + c));
      if (window) seen = vf_where_less(key, first, none, seen);
      vf_store(scores + t * columns + c, seen);
    }
  }
}

/* Scores `(count, columns)` to weights, column by column; kept[] is what rescales the gathered. */
INLINE int soften_columns(float *scores, int count, int64_t columns, float *top, float *total,
                          float *kept) {
  int changed = 0;
  for (int64_t c = 0; c < columns; c += LANES) {
    vf old = vf_load(top + c), high = old;
    for (int t = 0; t < count; t++) high = vf_max(high, vf_load(scores + t * columns + c));
    vf scale = vf_exp(vf_sub(old, high)), sum = vf_zero();
    for (int t = 0; t < count; t++) {
      vf weight = vf_exp(vf_sub(vf_load(scores + t * columns + c), high));
      vf_store(scores + t * columns + c, weight);
      sum = vf_add(sum, weight);
    }
    vf_store(total + c, vf_fma(vf_load(total + c), scale, sum));
    vf_store(top + c, high);
    vf_store(kept + c, scale);
    for (int i = 0; i < LANES; i++) changed |= kept[c + i] != 1.0f;
  }
  return changed;
}

/* Queries *index* to *index + queries* of one sequence's chunk, for one key head. */
INLINE void chunk_tile(const Attention *a, int64_t sequence, int64_t head, int64_t index,
                       int64_t queries, float *room, int bf16) {
  int64_t group = a->heads / a->kv_heads, padded = a->padded, columns = tile_columns(a);
  int64_t row = a->firsts[sequence] + index, used = queries * group;
  int64_t start = a->lengths[sequence] - (a->firsts[sequence + 1] - a->firsts[sequence]);
  int64_t first = start + index, last = first + queries - 1;
  const int32_t *table = a->tables + sequence * a->width;
  float *q = room, *scores = q + columns * padded, *gathered = scores + KEYS * columns;
  float *top = gathered + columns * padded, *total = top + columns, *kept = total + columns;
  float *place = kept + columns; /* positions: below 2^24, which fp32 tells apart */
  float *keys = place + columns, *values = keys + KEYS * padded;
  memset(q, 0, (size_t)(columns * padded) * 4);
  memset(gathered, 0, (size_t)(columns * padded) * 4);
  for (int64_t c = 0; c < columns; c++) {
    top[c] = LOWEST;
    total[c] = 0;
    place[c] = (float)(first + c / group);
    int64_t at = ((row + c / group) * a->heads + head * group + c % group) * a->dim;
    for (int64_t i = 0; c < used && i < a->dim; i++)
      q[i * columns + c] = get(a->q, at + i, bf16) * a->scale;
  }
  int64_t from = a->window && first + 1 > a->window ? first + 1 - a->window : 0;
  for (int count; from <= last; from += count) {
    count = run_of(a, from, last + 1);
    int64_t step;
    const float *k = rows_of(a, a->keys, table, from, count, head, keys, &step, bf16);
    memset(scores, 0, (size_t)(count * columns) * 4);
    multiply(k, step, 1, q, columns, scores, columns, count, (int)padded, (int)columns);
    if (from + count - 1 > first || (a->window && from <= last - a->window))
      hide(scores, columns, place, from, count, a->window);
    if (soften_columns(scores, count, columns, top, total, kept))
      for (int64_t c = 0; c < used; c++)
        for (int64_t i = 0; i < padded; i += LANES) {
          float *piece = gathered + c * padded + i;
          vf_store(piece, vf_mul(vf_load(piece), vf_set1(kept[c])));
        }
    const float *v = rows_of(a, a->values, table, from, count, head, values, &step, bf16);
    multiply(scores, 1, columns, v, step, gathered, padded, (int)used, count, (int)padded);
  }
  for (int64_t c = 0; c < used; c++) {
    int64_t to = ((row + c / group) * a->heads + head * group + c % group) * a->dim;
    for (int64_t i = 0; i < a->dim; i++)
      put(a->out, to + i, gathered[c * padded + i] / total[c], bf16);
  }
}

/* ------------------------------------------------------------------- both */

static int64_t room_floats(const Attention *a) {
  int64_t decode = decode_floats(a), chunk = chunk_floats(a);
  return round_up(decode > chunk ? decode : chunk, 16);
}

static int64_t result_floats(const Attention *a) {
  return a->heads / a->kv_heads * (a->padded + 16);
}

/* One loop of an attention; every thread has a room of its own. */
typedef struct {
  const Attention *a;
  float *results, *rooms;
  int64_t tiles;
  int bf16;
} Attending;

INLINE void decode_some(const Attending *at, int64_t first, int64_t last, float *room, int bf16) {
  const Attention *a = at->a;
  float *results = at->results;
  int64_t group = a->heads / a->kv_heads, size = result_floats(a);
  for (int64_t i = first; i < last; i++) {
    int64_t segment = i % a->segments, head = i / a->segments % a->kv_heads;
    int64_t row = i / a->segments / a->kv_heads, length = a->lengths[row];
    int64_t low = a->window && a->window < length ? (length - a->window) / SEGMENT : 0;
    if (segment < low || segment * SEGMENT >= length) continue;
    decode_segment(a, row, head, segment, room, results + i * size, bf16);
    if (low * SEGMENT + SEGMENT < length && a->segments > 1) continue;
    for (int64_t g = 0; g < group; g++) {
      int64_t to = ((int64_t)a->firsts[row] * a->heads + head * group + g) * a->dim;
      merge(a, results + i * size + g * (a->padded + 16), 1, 0, to, bf16);
    }
  }
}

INLINE void merge_some(const Attending *at, int64_t first, int64_t last, int bf16) {
  const Attention *a = at->a;
  int64_t group = a->heads / a->kv_heads, size = result_floats(a);
  for (int64_t i = first; i < last; i++) {
    int64_t row = i / a->kv_heads, head = i % a->kv_heads, length = a->lengths[row];
    int64_t low = a->window && a->window < length ? (length - a->window) / SEGMENT : 0;
    if (low * SEGMENT + SEGMENT >= length) continue;
    const float *parts = at->results + (i * a->segments + low) * size;
    for (int64_t g = 0; g < group; g++) {
      int64_t to = ((int64_t)a->firsts[row] * a->heads + head * group + g) * a->dim;
      merge(a, parts + g * (a->padded + 16), (length - 1) / SEGMENT + 1 - low, size, to, bf16);
    }
  }
}

static int64_t tiles_of(const Attention *a) {
  int64_t queries = tile_queries(a), tiles = 0;
  for (int64_t s = a->decodes; s < a->sequences; s++)
    tiles += (a->firsts[s + 1] - a->firsts[s] + queries - 1) / queries;
  return tiles;
}

INLINE void chunk_some(const Attending *at, int64_t first, int64_t last, float *room, int bf16) {
  const Attention *a = at->a;
  int64_t queries = tile_queries(a);
  for (int64_t i = first; i < last; i++) {
    /* The last tiles see most: they go first, so that no thread is left alone with one. */
    int64_t tile = at->tiles - 1 - i / a->kv_heads, s = a->decodes, count = 0;
    for (;; s++) {
      count = a->firsts[s + 1] - a->firsts[s];
      int64_t own = (count + queries - 1) / queries;
      if (tile < own) break;
      tile -= own;
    }
    int64_t left = count - tile * queries;
    chunk_tile(a, s, i % a->kv_heads, tile * queries, left < queries ? left : queries, room, bf16);
  }
}

static void decode_pieces(const void *what, int64_t first, int64_t last, int thread) {
  const Attending *at = what;
  float *room = at->rooms + thread * room_floats(at->a);
  if (at->bf16) decode_some(at, first, last, room, 1);
  else decode_some(at, first, last, room, 0);
}

static void merge_pieces(const void *what, int64_t first, int64_t last, int thread) {
  const Attending *at = what;
  (void)thread;
  if (at->bf16) merge_some(at, first, last, 1);
  else merge_some(at, first, last, 0);
}

static void chunk_pieces(const void *what, int64_t first, int64_t last, int thread) {
  const Attending *at = what;
  float *room = at->rooms + thread * room_floats(at->a);
  if (at->bf16) chunk_some(at, first, last, room, 1);
  else chunk_some(at, first, last, room, 0);
}

static Attention attention_of(int64_t heads, int64_t kv_heads, int64_t dim, int64_t decodes,
                              int64_t longest) {
  Attention a = {0};
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.dim = dim;
  a.padded = round_up(dim, 16);
  a.decodes = decodes;
  a.segments = longest > SEGMENT ? (longest + SEGMENT - 1) / SEGMENT : 1;
  return a;
}

/* Bytes of memory that `cortex_attend` wants for the same arguments. */
int64_t cortex_attend_memory(int64_t heads, int64_t kv_heads, int64_t dim, int64_t decodes,
                             int64_t longest, int64_t threads) {
  Attention a = attention_of(heads, kv_heads, dim, decodes, longest);
  int64_t results = decodes * kv_heads * a.segments * result_floats(&a);
  return 4 * (results + threads * room_floats(&a));
}

/* q and out `(rows, heads, dim)`; keys and values `(blocks, block, kv_heads, dim)`; tables
   `(sequences, width)`, firsts `(sequences + 1,)` and lengths `(sequences,)` as a Batch has them,
   *decodes* sequences of one row first, no length above *longest*; a row at position p sees keys
   from p + 1 - window (0 stands for no window) to p. dim is at most 1024. */
void cortex_attend(const void *q, const void *keys, const void *values, void *out,
                   const int32_t *tables, const int32_t *firsts, const int32_t *lengths,
                   int64_t sequences, int64_t width, int64_t decodes, int64_t longest,
                   int64_t heads, int64_t kv_heads, int64_t dim, int64_t block, int64_t window,
                   float scale, int64_t bf16, float *memory, int64_t threads) {
  Attention a = attention_of(heads, kv_heads, dim, decodes, longest);
  a.q = q;
  a.keys = keys;
  a.values = values;
  a.out = out;
  a.tables = tables;
  a.firsts = firsts;
  a.lengths = lengths;
  a.sequences = sequences;
  a.width = width;
  a.block = block;
  a.window = window;
  a.scale = scale;
  float *rooms = memory + decodes * kv_heads * a.segments * result_floats(&a);
  Attending at = {&a, memory, rooms, tiles_of(&a), (int)bf16};
  if (decodes) {
    share_out(decodes * kv_heads * a.segments, 1, threads, decode_pieces, &at);
    if (a.segments > 1) share_out(decodes * kv_heads, 8, threads, merge_pieces, &at);
  }
  if (at.tiles) share_out(at.tiles * kv_heads, 1, threads, chunk_pieces, &at);
}
