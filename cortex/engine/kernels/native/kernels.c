/* The native kernels of a CPU: one translation unit, C11, compiled on first use.

   Only x86-64 with AVX-512 or AVX2, AArch64 and plain C are told apart (simd.c); pointers are to
   contiguous, little-endian data, sizes are int64. */

#include "simd.c"

#include "team.c"

#include "multiply.c"

#include "formats.c"

#include "packed.c"

#include "dense.c"

#include "product.c"

#include "rows.c"

#include "attention.c"

/* Which variant this is: 3 AVX-512, 2 AVX2, 1 NEON, 0 plain C. */
int64_t cortex_level(void) {
#if defined(LEVEL_AVX512)
  return 3;
#elif defined(LEVEL_AVX2)
  return 2;
#elif defined(LEVEL_NEON)
  return 1;
#else
  return 0;
#endif
}
