/* One native vector of LANES 32-bit lanes, for AVX-512 with VNNI, AVX2, NEON and plain C.

   Everything above this file is written once, for a vector of whatever length. A packed weight's
   tile holds 16 rows, so LANES divides 16. `vb` is the same register seen as bytes, four to a lane.
   Every maximum keeps its second operand where one is not a number, as x86 does. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Before a short loop over an array that is to live in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__) && !defined(CORTEX_NO_AVX512)
#define LEVEL_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(CORTEX_NO_AVX2)
#define LEVEL_AVX2 1
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(CORTEX_NO_NEON)
#define LEVEL_NEON 1
#endif

#if defined(LEVEL_AVX512) && defined(__AVX512BF16__)
#define HAVE_BF16_DOT 1
#endif

INLINE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

INLINE float float_of_bf16(uint16_t half) { return float_of_bits((uint32_t)half << 16); }

/* Round to nearest, ties to even; what is not a number stays so. */
INLINE uint16_t bf16_of_float(float value) {
  uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float float_of_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest >= 0x400) return float_of_bits(sign | ((rest << 13) + 0x38000000));
  float tiny = (float)rest * 5.9604644775390625e-8f; /* 2^-24 */
  return sign ? -tiny : tiny;
}

/* ---------------------------------------------------------------- AVX-512 */
#if defined(LEVEL_AVX512)
#include <immintrin.h>
#define LANES 16
#define TOKENS 8 /* rows of activations that share one pass over a weight: they fit registers */
typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_highest(vf a) { return _mm512_reduce_max_ps(a); }
/* The sums of four vectors, to p[0] to p[3]. */
INLINE void vf_sum4(float *p, vf a, vf b, vf c, vf d) {
  vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  vf low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  vf all = _mm512_add_ps(low, high);
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
/* b where x < y, else a. */
INLINE vf vf_where_less(vf x, vf y, vf b, vf a) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), a, b);
}
INLINE vf vf_load_bf16(const uint16_t *p) {
  __m256i raw = _mm256_loadu_si256((const void *)p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
INLINE vf vf_load_half(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
INLINE vf vf_load_i8(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vi vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_shr(vi a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }
INLINE vi vi_shl(vi a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }
INLINE int32_t vi_highest(vi a) { return _mm512_reduce_max_epi32(a); }
INLINE vf vi_float(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vf_round(vf a) { return _mm512_cvtps_epi32(a); }
INLINE vi vf_bits(vf a) { return _mm512_castps_si512(a); }
INLINE vf vi_bits(vi a) { return _mm512_castsi512_ps(a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
  _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(a));
}
INLINE void vi_store_u16(uint16_t *p, vi a) {
  _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(a));
}
INLINE vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vb vb_set1(int a) { return _mm512_set1_epi8((char)a); }
INLINE vb vb_and(vb a, vb b) { return _mm512_and_si512(a, b); }
INLINE vb vb_or(vb a, vb b) { return _mm512_or_si512(a, b); }
/* Shifts of 16-bit pieces: the caller masks what crosses from byte to byte. */
INLINE vb vb_shr(vb a, int n) { return _mm512_srli_epi16(a, (unsigned)n); }
INLINE vb vb_shl(vb a, int n) { return _mm512_slli_epi16(a, (unsigned)n); }
INLINE vb vb_look_up(const uint8_t *table, vb index) {
  __m512i wide = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table));
  return _mm512_shuffle_epi8(wide, index);
}
INLINE vi vb_lanes(vb a) { return a; }
/* acc + in each lane the four weights times the four activations at x. Weights are below 128 in
   `narrow`; in `wide` they are signed ones plus 128, and the caller begins with -128 sum(x). */
#define WIDE_OFFSET 128
INLINE vi dot_narrow(vi acc, vb w, const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}
INLINE vi dot_wide(vi acc, vb w, const int8_t *x) { return dot_narrow(acc, w, x); }

/* ------------------------------------------------------------------- AVX2 */
#elif defined(LEVEL_AVX2)
#include <immintrin.h>
#define LANES 8
#define TOKENS 4
typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vb;
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE float vf_sum(vf a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vf_highest(vf a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
INLINE void vf_sum4(float *p, vf a, vf b, vf c, vf d) {
  vf all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
INLINE vf vf_where_less(vf x, vf y, vf b, vf a) {
  return _mm256_blendv_ps(a, b, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}
INLINE vf vf_load_bf16(const uint16_t *p) {
  __m128i raw = _mm_loadu_si128((const void *)p);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
INLINE vf vf_load_half(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
INLINE vf vf_load_i8(const int8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vi_shr(vi a, int n) { return _mm256_srli_epi32(a, n); }
INLINE vi vi_shl(vi a, int n) { return _mm256_slli_epi32(a, n); }
INLINE __m128i vi_half_max(vi a) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  return _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
}
INLINE int32_t vi_sum(vi a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}
INLINE int32_t vi_highest(vi a) {
  __m128i s = vi_half_max(a);
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1)));
}
INLINE vf vi_float(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vf_round(vf a) { return _mm256_cvtps_epi32(a); }
INLINE vi vf_bits(vf a) { return _mm256_castps_si256(a); }
INLINE vf vi_bits(vi a) { return _mm256_castsi256_ps(a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
}
INLINE void vi_store_u16(uint16_t *p, vi a) {
  _mm_storeu_si128((void *)p, _mm_packus_epi32(_mm256_castsi256_si128(a),
                                               _mm256_extracti128_si256(a, 1)));
}
INLINE vb vb_load(const uint8_t *p) { return _mm256_loadu_si256((const void *)p); }
INLINE vb vb_set1(int a) { return _mm256_set1_epi8((char)a); }
INLINE vb vb_and(vb a, vb b) { return _mm256_and_si256(a, b); }
INLINE vb vb_or(vb a, vb b) { return _mm256_or_si256(a, b); }
INLINE vb vb_shr(vb a, int n) { return _mm256_srli_epi16(a, n); }
INLINE vb vb_shl(vb a, int n) { return _mm256_slli_epi16(a, n); }
INLINE vb vb_look_up(const uint8_t *table, vb index) {
  __m256i wide = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
  return _mm256_shuffle_epi8(wide, index);
}
INLINE vi vb_lanes(vb a) { return a; }
INLINE __m256i broadcast4(const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
#if defined(__AVXVNNI__) && !defined(CORTEX_NO_VNNI)
#define WIDE_OFFSET 128
INLINE vi dot_narrow(vi acc, vb w, const int8_t *x) {
  return _mm256_dpbusd_avx_epi32(acc, w, broadcast4(x));
}
INLINE vi dot_wide(vi acc, vb w, const int8_t *x) { return dot_narrow(acc, w, x); }
#else
#define WIDE_OFFSET 0
INLINE vi dot_narrow(vi acc, vb w, const int8_t *x) {
  __m256i pairs = _mm256_maddubs_epi16(w, broadcast4(x)); /* at most 2 * 127 * 127: no overflow */
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE vi dot_wide(vi acc, vb w, const int8_t *x) {
  __m256i value = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(value),
                                       _mm256_sign_epi8(broadcast4(x), value));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

/* ------------------------------------------------------------------- NEON */
#elif defined(LEVEL_NEON)
#include <arm_neon.h>
#define LANES 4
#define TOKENS 8
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint8x16_t vb;
INLINE vf vf_zero(void) { return vdupq_n_f32(0); }
INLINE vf vf_set1(float a) { return vdupq_n_f32(a); }
INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
INLINE void vf_store(float *p, vf a) { vst1q_f32(p, a); }
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
INLINE float vf_sum(vf a) { return vaddvq_f32(a); }
INLINE float vf_highest(vf a) { return vmaxvq_f32(a); }
INLINE void vf_sum4(float *p, vf a, vf b, vf c, vf d) {
  vst1q_f32(p, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
INLINE vf vf_where_less(vf x, vf y, vf b, vf a) { return vbslq_f32(vcltq_f32(x, y), b, a); }
INLINE vf vf_load_bf16(const uint16_t *p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
INLINE vf vf_load_half(const uint16_t *p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE vf vf_load_i8(const int8_t *p) {
  int32_t four;
  memcpy(&four, p, 4);
  int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
INLINE vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
INLINE vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
INLINE vi vi_shr(vi a, int n) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}
INLINE vi vi_shl(vi a, int n) { return vshlq_s32(a, vdupq_n_s32(n)); }
INLINE int32_t vi_sum(vi a) { return vaddvq_s32(a); }
INLINE int32_t vi_highest(vi a) { return vmaxvq_s32(a); }
INLINE vf vi_float(vi a) { return vcvtq_f32_s32(a); }
INLINE vi vf_round(vf a) { return vcvtnq_s32_f32(a); }
INLINE vi vf_bits(vf a) { return vreinterpretq_s32_f32(a); }
INLINE vf vi_bits(vi a) { return vreinterpretq_f32_s32(a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
  int16x4_t words = vqmovn_s32(a);
  int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  vst1_lane_s32((int32_t *)(void *)p, vreinterpret_s32_s8(bytes), 0);
}
INLINE void vi_store_u16(uint16_t *p, vi a) { vst1_u16(p, vmovn_u32(vreinterpretq_u32_s32(a))); }
INLINE vb vb_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE vb vb_set1(int a) { return vdupq_n_u8((uint8_t)a); }
INLINE vb vb_and(vb a, vb b) { return vandq_u8(a, b); }
INLINE vb vb_or(vb a, vb b) { return vorrq_u8(a, b); }
INLINE vb vb_shr(vb a, int n) { return vshlq_u8(a, vdupq_n_s8((int8_t)-n)); }
INLINE vb vb_shl(vb a, int n) { return vshlq_u8(a, vdupq_n_s8((int8_t)n)); }
INLINE vb vb_look_up(const uint8_t *table, vb index) { return vqtbl1q_u8(vld1q_u8(table), index); }
INLINE vi vb_lanes(vb a) { return vreinterpretq_s32_u8(a); }
INLINE int8x16_t broadcast4(const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
INLINE vi dot_signed(vi acc, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(acc, w, x);
#else
  int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
  int16x8_t high = vmull_s8(vget_high_s8(w), vget_high_s8(x));
  return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
#define WIDE_OFFSET 0
INLINE vi dot_narrow(vi acc, vb w, const int8_t *x) {
  return dot_signed(acc, vreinterpretq_s8_u8(w), broadcast4(x));
}
INLINE vi dot_wide(vi acc, vb w, const int8_t *x) {
  return dot_signed(acc, vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(0x80))), broadcast4(x));
}

/* ---------------------------------------------------------------- plain C */
#else
#define LANES 4
#define TOKENS 4
typedef struct { float v[4]; } vf;
typedef struct { int32_t v[4]; } vi;
typedef struct { uint8_t v[16]; } vb;
#define EACH(type, count, expression) \
  type out; \
  for (int i = 0; i < count; i++) out.v[i] = (expression); \
  return out
INLINE vf vf_set1(float a) { EACH(vf, 4, a); }
INLINE vf vf_zero(void) { return vf_set1(0); }
INLINE vf vf_load(const float *p) { EACH(vf, 4, p[i]); }
INLINE void vf_store(float *p, vf a) { memcpy(p, a.v, 16); }
INLINE vf vf_add(vf a, vf b) { EACH(vf, 4, a.v[i] + b.v[i]); }
INLINE vf vf_sub(vf a, vf b) { EACH(vf, 4, a.v[i] - b.v[i]); }
INLINE vf vf_mul(vf a, vf b) { EACH(vf, 4, a.v[i] * b.v[i]); }
INLINE vf vf_div(vf a, vf b) { EACH(vf, 4, a.v[i] / b.v[i]); }
INLINE vf vf_fma(vf a, vf b, vf c) { EACH(vf, 4, a.v[i] * b.v[i] + c.v[i]); }
INLINE vf vf_max(vf a, vf b) { EACH(vf, 4, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE vf vf_min(vf a, vf b) { EACH(vf, 4, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE float vf_sum(vf a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
INLINE float vf_highest(vf a) {
  float top = a.v[0];
  for (int i = 1; i < 4; i++) top = a.v[i] > top ? a.v[i] : top;
  return top;
}
INLINE void vf_sum4(float *p, vf a, vf b, vf c, vf d) {
  p[0] = vf_sum(a), p[1] = vf_sum(b), p[2] = vf_sum(c), p[3] = vf_sum(d);
}
INLINE vf vf_where_less(vf x, vf y, vf b, vf a) {
  EACH(vf, 4, x.v[i] < y.v[i] ? b.v[i] : a.v[i]);
}
INLINE vf vf_load_bf16(const uint16_t *p) { EACH(vf, 4, float_of_bf16(p[i])); }
INLINE vf vf_load_half(const uint16_t *p) { EACH(vf, 4, float_of_half(p[i])); }
INLINE vf vf_load_i8(const int8_t *p) { EACH(vf, 4, (float)p[i]); }
INLINE vi vi_set1(int32_t a) { EACH(vi, 4, a); }
INLINE vi vi_add(vi a, vi b) { EACH(vi, 4, a.v[i] + b.v[i]); }
INLINE vi vi_max(vi a, vi b) { EACH(vi, 4, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE vi vi_and(vi a, vi b) { EACH(vi, 4, a.v[i] & b.v[i]); }
INLINE vi vi_shr(vi a, int n) { EACH(vi, 4, (int32_t)((uint32_t)a.v[i] >> n)); }
INLINE vi vi_shl(vi a, int n) { EACH(vi, 4, (int32_t)((uint32_t)a.v[i] << n)); }
INLINE int32_t vi_sum(vi a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }
INLINE int32_t vi_highest(vi a) {
  int32_t top = a.v[0];
  for (int i = 1; i < 4; i++) top = a.v[i] > top ? a.v[i] : top;
  return top;
}
INLINE vf vi_float(vi a) { EACH(vf, 4, (float)a.v[i]); }
/* What no int holds becomes INT_MIN, as x86 has it. */
INLINE vi vf_round(vf a) {
  EACH(vi, 4, fabsf(a.v[i]) < 2147483648.0f ? (int32_t)rintf(a.v[i]) : INT32_MIN);
}
INLINE vi vf_bits(vf a) { EACH(vi, 4, (int32_t)bits_of_float(a.v[i])); }
INLINE vf vi_bits(vi a) { EACH(vf, 4, float_of_bits((uint32_t)a.v[i])); }
INLINE void vi_store_i8(int8_t *p, vi a) {
  for (int i = 0; i < 4; i++)
    p[i] = (int8_t)(a.v[i] < -128 ? -128 : a.v[i] > 127 ? 127 : a.v[i]);
}
INLINE void vi_store_u16(uint16_t *p, vi a) {
  for (int i = 0; i < 4; i++) p[i] = (uint16_t)a.v[i];
}
INLINE vb vb_load(const uint8_t *p) { EACH(vb, 16, p[i]); }
INLINE vb vb_set1(int a) { EACH(vb, 16, (uint8_t)a); }
INLINE vb vb_and(vb a, vb b) { EACH(vb, 16, (uint8_t)(a.v[i] & b.v[i])); }
INLINE vb vb_or(vb a, vb b) { EACH(vb, 16, (uint8_t)(a.v[i] | b.v[i])); }
INLINE vb vb_shr(vb a, int n) { EACH(vb, 16, (uint8_t)(a.v[i] >> n)); }
INLINE vb vb_shl(vb a, int n) { EACH(vb, 16, (uint8_t)(a.v[i] << n)); }
INLINE vb vb_look_up(const uint8_t *table, vb index) { EACH(vb, 16, table[index.v[i] & 15]); }
/* Byte 0 of a lane is its lowest, on a machine of either endianness. */
INLINE vi vb_lanes(vb a) {
  EACH(vi, 4, (int32_t)(a.v[4 * i] | (uint32_t)a.v[4 * i + 1] << 8 |
                        (uint32_t)a.v[4 * i + 2] << 16 | (uint32_t)a.v[4 * i + 3] << 24));
}
#define WIDE_OFFSET 0
INLINE vi dot_narrow(vi acc, vb w, const int8_t *x) {
  EACH(vi, 4, acc.v[i] + w.v[4 * i] * x[0] + w.v[4 * i + 1] * x[1] + w.v[4 * i + 2] * x[2] +
                  w.v[4 * i + 3] * x[3]);
}
INLINE vi dot_wide(vi acc, vb w, const int8_t *x) {
  EACH(vi, 4, acc.v[i] + (w.v[4 * i] - 128) * x[0] + (w.v[4 * i + 1] - 128) * x[1] +
                  (w.v[4 * i + 2] - 128) * x[2] + (w.v[4 * i + 3] - 128) * x[3]);
}
#endif

/* -------------------------------------------------- made of the above only */

/* Where a whole 16-row vector of a tile is 64 bytes, this many native ones make it up. */
#define PARTS (16 / LANES)

INLINE void vf_store_bf16(uint16_t *p, vf a) {
#if defined(HAVE_BF16_DOT)
  _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(a));
#else
  vi bits = vf_bits(a);
  vi odd = vi_and(vi_shr(bits, 16), vi_set1(1));
  vi up = vi_shr(vi_add(vi_add(bits, vi_set1(0x7fff)), odd), 16);
  /* Rounding could carry what is not a number into infinity or zero. */
  vf size = vi_bits(vi_and(bits, vi_set1(0x7fffffff)));
  vf kept = vf_where_less(size, vf_set1(INFINITY), vi_bits(up), vi_bits(vi_shr(bits, 16)));
  vi_store_u16(p, vf_bits(kept));
#endif
}

/* A float array that is stored as bf16 or as fp32; both constants where it is used. */
INLINE vf vf_get(const void *p, int64_t i, int bf16) {
  return bf16 ? vf_load_bf16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}
INLINE void vf_put(void *p, int64_t i, vf a, int bf16) {
  if (bf16) vf_store_bf16((uint16_t *)p + i, a);
  else vf_store((float *)p + i, a);
}
INLINE float get(const void *p, int64_t i, int bf16) {
  return bf16 ? float_of_bf16(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void put(void *p, int64_t i, float a, int bf16) {
  if (bf16) ((uint16_t *)p)[i] = bf16_of_float(a);
  else ((float *)p)[i] = a;
}
/* What *a* is after a store and a load. */
INLINE float rounded(float a, int bf16) { return bf16 ? float_of_bf16(bf16_of_float(a)) : a; }

/* e^x to about 2 units in the last place; 0 below -87.3, infinity above 88.3, NaN of NaN. The
   polynomial is the Taylor series of e^r, |r| <= ln(2)/2, whose degree 7 leaves 2^-27. */
INLINE vf vf_exp(vf x) {
  vf bounded = vf_min(vf_set1(88.3f), vf_max(vf_set1(-88.3f), x));
  vi n = vf_round(vf_mul(bounded, vf_set1(1.44269504088896341f)));
  vf whole = vi_float(n);
  vf r = vf_fma(whole, vf_set1(-0.693359375f), bounded);
  r = vf_fma(whole, vf_set1(2.12194440e-4f), r);
  vf p = vf_set1(1.0f / 5040);
  p = vf_fma(p, r, vf_set1(1.0f / 720));
  p = vf_fma(p, r, vf_set1(1.0f / 120));
  p = vf_fma(p, r, vf_set1(1.0f / 24));
  p = vf_fma(p, r, vf_set1(1.0f / 6));
  p = vf_fma(p, r, vf_set1(0.5f));
  p = vf_fma(p, r, vf_set1(1));
  p = vf_fma(p, r, vf_set1(1));
  vf power = vi_bits(vi_shl(vi_add(n, vi_set1(127)), 23));
  vf result = vf_where_less(x, vf_set1(-87.3f), vf_zero(), vf_mul(p, power));
  return vf_where_less(vf_set1(88.3f), x, vf_set1(INFINITY), result);
}
