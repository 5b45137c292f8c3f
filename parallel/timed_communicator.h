// How long a stream waits for collectives: the part of communication that nothing hides.
#pragma once
#include <string>
#include <vector>

#include "parallel/mesh.h"

namespace lapidary {

/// The waits of one stream, in their order.
class WaitTimer {
 public:
  struct Wait {
    std::string group;   ///< the communicator's name
    double seconds = 0;  ///< in which the stream could do nothing else
  };

  void begin(const Stream& stream, const std::string& group);
  void end(const Stream& stream);
  /// Waits for the stream; what was recorded since the last call.
  std::vector<Wait> collect(const Stream& stream);

 private:
  struct Interval {
    std::string group;
    Event from, to;
  };
  std::vector<Interval> intervals_;
};

/// From now on every communicator of the mesh that has other ranks records its waits in `timer`, by two
/// events each. The timer outlives the mesh.
void time_waits(Mesh& mesh, WaitTimer& timer);

}  // namespace lapidary
