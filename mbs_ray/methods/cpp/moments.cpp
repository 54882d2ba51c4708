// Sums of x xᵀ on the matrix units of a CPU (AMX), which multiply bfloat16 and sum in float32. cpu_moments.py calls it;
// cpu_library.py compiles it with STORED, the dtype of the tokens.
//
// A float32 is the sum of three bfloat16, a float16 of two: x = x₀ + x₁ + x₂, each 2⁻⁸ of the one before. Of the products
// of two numbers those of parts i and j with i + j ≤ 2 are summed; what is left out is below half a unit in the last place
// of a float32 product. For 16-bit tokens nothing is left out.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

struct Tokens {
  const STORED* values;  // [tokens, columns]
  float* sum;            // [columns, columns]; only blocks on and below the diagonal are added to
  uint16_t* packed;      // parts × 2 × chunk × columns, both rounded up to 32
  int64_t tokens, columns, stride, chunk;
};

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int64_t TILE = 16;          // rows of a tile, of 64 bytes each
constexpr int64_t WIDE = 2 * TILE;    // columns of a block of the sum, which takes 2 × 2 tiles; tokens of a tile
constexpr int64_t PARTS = std::is_same_v<STORED, float> ? 3 : std::is_same_v<STORED, c10::Half> ? 2 : 1;
constexpr int64_t NUMBERS = TILE * WIDE;           // bfloat16 of a tile
constexpr int64_t STEP = PARTS * 2 * NUMBERS;      // of all parts of 32 columns and 32 tokens
constexpr int64_t MOST = 256;         // columns of what one thread takes at a time: its parts stay in the second cache

struct alignas(64) Config {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);
const Config ALL_TILES{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// The tiles of this thread, set for the life of this object and then as they were: torch's own products remember how they
// have set them. Not the compiler's own functions, of whose operands it takes 8 of the 64 bytes to be read or written.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(ALL_TILES));
  }
  ~Tiles() { asm volatile("ldtilecfg %0" ::"m"(before_)); }

 private:
  Config before_;
};

inline __m512 loaded(const float* from, __mmask16 columns) { return _mm512_maskz_loadu_ps(columns, from); }
inline __m512 loaded(const c10::BFloat16* from, __mmask16 columns) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, from)), 16));
}
inline __m512 loaded(const c10::Half* from, __mmask16 columns) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(columns, from));
}

// Takes the next part off each value; returns its bits, one in each 32.
inline __m512i part_of(__m512& values) {
  const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values));
  values = _mm512_sub_ps(values, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
  return bits;
}

inline void transpose(const __m512i* from, __m512i* to) {
  __m512i pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
  for (int j = 0; j < 4; ++j) {
    const __m512i upper = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i lower = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i upper_odd = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const __m512i lower_odd = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    to[j] = _mm512_shuffle_i32x4(upper, lower, 0x88);
    to[8 + j] = _mm512_shuffle_i32x4(upper, lower, 0xdd);
    to[4 + j] = _mm512_shuffle_i32x4(upper_odd, lower_odd, 0x88);
    to[12 + j] = _mm512_shuffle_i32x4(upper_odd, lower_odd, 0xdd);
  }
}

// Packs 16 columns of 32 tokens into a tile for each part: `right` as factor on the right, two tokens side by side in each
// row, and `left`, its transpose, as factor on the left. What is beyond the columns and the tokens is zero.
void pack(const Tokens& of, int64_t token, int64_t end, int64_t column, uint16_t* left, uint16_t* right) {
  const int64_t width = std::clamp<int64_t>(of.columns - column, 0, TILE);
  const __mmask16 columns = static_cast<__mmask16>((1u << width) - 1);
  __m512i rows[PARTS][TILE], turned[TILE];
  for (int64_t row = 0; row < TILE; ++row) {
    __m512 values[2];
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t at = token + 2 * row + i;
      values[i] = loaded(of.values + std::min(at, end - 1) * of.stride + column, at < end ? columns : 0);
    }
    for (int64_t part = 0; part < PARTS; ++part) {
      const __m512i first = part_of(values[0]);
      rows[part][row] = _mm512_or_si512(first, _mm512_slli_epi32(part_of(values[1]), 16));
    }
  }
  for (int64_t part = 0; part < PARTS; ++part) {
    transpose(rows[part], turned);
    for (int64_t row = 0; row < TILE; ++row) {
      _mm512_store_si512(left + part * 2 * NUMBERS + row * WIDE, turned[row]);
      _mm512_store_si512(right + part * 2 * NUMBERS + row * WIDE, rows[part][row]);
    }
  }
}

// Tiles 0 to 3 are the block of the sum, 4 and 5 a part of the left factor, 6 and 7 of the right one.
inline void load_left(const uint16_t* from, int64_t part) {
  _tile_loadd(4, from + part * 2 * NUMBERS, 64);
  _tile_loadd(5, from + part * 2 * NUMBERS + NUMBERS, 64);
}
inline void load_right(const uint16_t* from, int64_t part) {
  _tile_loadd(6, from + part * 2 * NUMBERS, 64);
  _tile_loadd(7, from + part * 2 * NUMBERS + NUMBERS, 64);
}
inline void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Adds the products of 32 × 32 columns to `sum`, whose rows are `stride` apart.
void add_block(const uint16_t* left, const uint16_t* right, int64_t steps, float* sum, int64_t stride) {
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  const int64_t bytes = stride * sizeof(float);
  float* lower = sum + TILE * stride;
  _tile_loadd(0, sum, bytes);
  _tile_loadd(1, sum + TILE, bytes);
  _tile_loadd(2, lower, bytes);
  _tile_loadd(3, lower + TILE, bytes);
  for (int64_t step = 0; step < steps; ++step, left += STEP, right += STEP) {
    load_left(left, 0);
    for (int64_t part = PARTS - 1; part >= 0; --part) {  // of this part the smallest products first
      load_right(right, part);
      multiply();
    }
    if constexpr (PARTS > 1) {
      load_left(left, 1);
      multiply();
      load_right(right, 1);
      multiply();
    }
    if constexpr (PARTS > 2) {
      load_left(left, 2);
      load_right(right, 0);
      multiply();
    }
  }
  _tile_stored(0, sum, bytes);
  _tile_stored(1, sum + TILE, bytes);
  _tile_stored(2, lower, bytes);
  _tile_stored(3, lower + TILE, bytes);
}

// The same at the lower edge of the sum, by way of a whole block.
void add_at_edge(const uint16_t* left, const uint16_t* right, int64_t steps, float* sum, int64_t rows, int64_t columns,
                 int64_t stride) {
  alignas(64) float block[WIDE * WIDE] = {};
  for (int64_t row = 0; row < rows; ++row) std::copy_n(sum + row * stride, columns, block + row * WIDE);
  add_block(left, right, steps, block, WIDE);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(block + row * WIDE, columns, sum + row * stride);
}

// Linux lends a process the registers of tiles when it asks for them (arch_prctl(2)).
bool permitted() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

}  // namespace

extern "C" bool add_squares(const Tokens* of, int64_t threads) {
  if (!permitted()) return false;
  const int64_t strips = (of->columns + WIDE - 1) / WIDE;
  int64_t wide = MOST / WIDE;  // strips that a thread takes at a time: all threads should have something to do
  const auto taken = [&] { return (strips + wide - 1) / wide; };
  while (wide > 1 && taken() * (taken() + 1) / 2 < 3 * threads) wide /= 2;
  const int64_t all = taken();
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    for (int64_t token = 0; token < of->tokens; token += of->chunk) {
      const int64_t end = std::min(token + of->chunk, of->tokens), steps = (end - token + WIDE - 1) / WIDE;
      uint16_t *left = of->packed, *right = left + strips * steps * STEP;
#pragma omp for
      for (int64_t strip = 0; strip < strips; ++strip)
        for (int64_t step = 0; step < steps; ++step)
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t at = (strip * steps + step) * STEP + half * NUMBERS;
            pack(*of, token + step * WIDE, end, strip * WIDE + half * TILE, left + at, right + at);
          }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < all * all; ++task) {
        const int64_t first = task / all * wide, other = task % all * wide;
        for (int64_t row = first; row < std::min(strips, first + wide); ++row)
          for (int64_t column = other; column < std::min(row + 1, other + wide); ++column) {
            const uint16_t *one = left + row * steps * STEP, *two = right + column * steps * STEP;
            float* sum = of->sum + row * WIDE * of->columns + column * WIDE;
            const int64_t rows = std::min(WIDE, of->columns - row * WIDE);
            const int64_t columns = std::min(WIDE, of->columns - column * WIDE);
            if (rows == WIDE) add_block(one, two, steps, sum, of->columns);
            else add_at_edge(one, two, steps, sum, rows, columns, of->columns);
          }
      }
    }
  }
  return true;
}

#else

extern "C" bool add_squares(const Tokens*, int64_t) { return false; }

#endif
