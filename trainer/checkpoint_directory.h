// A folder of checkpoints: names, what is published, what may be deleted, and what a killed program left
// behind. One process (rank 0) works here at a time.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint.h"

namespace lapidary {

std::string checkpoint_name(std::int64_t step);  ///< "step-00000060"
/// The step of such a name, or nothing for any other name.
std::optional<std::int64_t> checkpoint_step(const std::string& name);

/// Steps with a folder of their name, newest first: published, but not necessarily unharmed.
std::vector<std::int64_t> published_steps(const std::string& directory);

/// What users name where a checkpoint is wanted: one itself, a run's folder, or its folder of checkpoints.
/// These look at names only.
bool is_checkpoint(const std::string& path);                 ///< one itself
std::string folder_of_checkpoints(const std::string& path);  ///< its "checkpoints" if it has one, or itself
bool holds_checkpoint(const std::string& path);              ///< any of the three
/// Path of the one itself, or of the newest. Error that says what is there instead: none.
std::string find_checkpoint(const std::string& path);

/// Reads the manifest of one checkpoint (against its checksum, its folder's name and the sizes of all files).
/// Error naming what is wrong.
CheckpointManifest read_manifest(const std::string& path);

struct CheckpointRetention {
  int keep_last = 3;            ///< newest ones; at least 1
  std::int64_t keep_every = 0;  ///< besides, every step that is a multiple of this; 0: none
  int keep_best = 0;            ///< besides, those with the lowest metric
};

struct SoundCheckpoint {
  std::int64_t step = 0;
  std::optional<double> metric;
};
/// The published ones that read_manifest() accepts.
std::vector<SoundCheckpoint> sound_checkpoints(const std::string& directory);

/// Which of them to delete, newest first. Damaged and foreign folders are not among them: they take nobody's
/// place and stay.
std::vector<std::int64_t> superfluous_steps(const std::vector<SoundCheckpoint>& sound,
                                            const CheckpointRetention& retention);

/// Deletes the superfluous ones of a directory. A checkpoint that cannot be deleted does not stop the others:
/// what went wrong is returned, one message each.
std::vector<std::string> delete_old_checkpoints(const std::string& directory,
                                                const CheckpointRetention& retention,
                                                const CheckpointHook& hook = {});

/// Renames a damaged checkpoint to "step-<digits>.damaged-<number>", for whoever wants to look at it, so that
/// the step can be saved again. Returns the new path.
std::string set_aside_damaged(const std::string& directory, std::int64_t step);

/// Removes what a killed program left: folders named ".tmp-<step>-<attempt>" and ".del-<step>-<attempt>",
/// nothing else. Called once at start-up, before anything is written. Returns the names removed.
std::vector<std::string> sweep_leftovers(const std::string& directory);

/// Creates <directory>/.<prefix>-<step>-<attempt> with the first attempt number that is free; returns its
/// path.
std::string create_hidden_folder(const std::string& directory, const std::string& prefix, std::int64_t step);

}  // namespace lapidary
