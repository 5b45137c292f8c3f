// A micro-batch on the host, as plain arrays: what data/ hands over and model/ consumes. Rows of the batch
// are laid end to end; the attention intervals keep rows and documents apart, so nothing downstream knows
// about either.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dtype.h"

namespace lapidary {

/// Image patches or audio frames as they are stored or given.
/// u8: pixel values, meaning value / 255. i16: PCM samples, meaning value / 32768. f32: as they are.
struct Features {
  DType dtype = DType::f32;
  std::int64_t count = 0;         ///< soft tokens: patches or frames
  std::int64_t width = 0;         ///< values per soft token: (48 * 48 * 3 = 6912) for patches, 640 for frames
  std::vector<std::byte> values;  ///< [count, width], row-major
  std::vector<std::int32_t> token;  ///< [count] index into the batch's tokens that each soft token replaces
};

/// Keys visible to query q are [lo[q], hi[q]); both arrays never decrease (architecture, decision 8).
struct Intervals {
  std::vector<std::int32_t> lo, hi;  ///< [tokens]
};

struct Batch {
  std::vector<std::int32_t> ids;        ///< [tokens] token ids; placeholders where a soft token goes
  std::vector<std::int32_t> targets;    ///< [tokens] id to predict at this position, or -1: not trained
  std::vector<std::int32_t> positions;  ///< [tokens] rotary position, restarts in every document
  Intervals full, sliding;              ///< visible keys in the two kinds of layer
  Features patches;                     ///< image (and video) soft tokens
  std::vector<std::int32_t> patch_xy;   ///< [patches.count, 2] grid column, grid row
  Features frames;                      ///< audio soft tokens
  std::vector<std::int64_t> samples;    ///< global ids of the documents inside, in order of appearance
  std::int64_t rows = 0;  ///< packed rows laid end to end; may be 0: a rank without work still takes part

  std::int64_t tokens() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t target_tokens() const;  ///< positions with a target
};

/// Which attention rule images follow (specification 3.7): `sliding` is rule B, what the released model was
/// made for; `all` is rule A, what transformers' own forward does.
enum class ImageAttention : std::uint8_t { sliding, all };

/// The visible-key intervals of both layer kinds from the layout of the tokens.
/// document[t]: any value that changes exactly where a new document (or row) starts.
/// vision[t]: 1 at image and video soft tokens; a maximal run of them is one bidirectional block. A run that
/// crosses the start of a document counts as two blocks. window: keys visible in sliding layers, the query
/// included.
void attention_intervals(const std::vector<std::int32_t>& document, const std::vector<std::uint8_t>& vision,
                         std::int32_t window, ImageAttention rule, Intervals& full, Intervals& sliding);

/// Throws Error naming the first thing that is not consistent: lengths, ids outside [0, vocabulary), targets,
/// intervals that decrease or miss their own token, soft-token positions out of order, or placeholder ids
/// without features (`where` starts the message). `soft_ids` are the ids that must be replaced by a feature.
void check_batch(const Batch& batch, std::int32_t vocabulary, const std::vector<std::int32_t>& soft_ids,
                 const std::string& where);

}  // namespace lapidary
