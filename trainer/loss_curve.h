// The picture of a run: training and held-out loss over steps as an SVG that any browser shows, needing
// nothing else.
#pragma once
#include <string>

#include "trainer/metrics_history.h"

namespace lapidary {

/// Axes, both curves, a mark at every restart and a list of the restarts. Losses that are not finite are
/// gaps, counted in the legend; long runs are drawn by the lowest and highest loss of each pixel column.
/// Throws Error if there is not one finite loss.
std::string draw_loss_curve(const MetricsHistory& history, const std::string& title);

/// Draws metrics.jsonl into a new SVG; one that is there is replaced at once or not at all. Errors name the
/// file.
void write_loss_curve(const std::string& metrics_path, const std::string& svg_path);

}  // namespace lapidary
