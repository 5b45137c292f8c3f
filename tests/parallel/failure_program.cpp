// A rank of a job that fails in a given way: what failures_test.sh starts under mpirun.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "kernels/check.h"
#include "parallel/mesh.h"
#include "parallel/mpi_session.h"

namespace lapidary {
namespace {

// A step's worth of collectives; a rank that does not come leaves the others waiting here.
void collective(Communicator& group, Stream& stream) {
  float number = 1;
  Ticket ticket = group.all_reduce(stream, Tensor(&number, DType::f32, {1}), Reduction::sum);
  group.wait(stream, ticket);
  require(number == static_cast<float>(group.size()), "a sum of ones is {}", number);
}

int run(const MpiSession& session, const std::string& how, int culprit) {
  const Mesh mesh = make_mpi_mesh(
      resolve_mesh(session.size(), session.rank(), 0, 0, session.ranks_per_node()), cpu_backend());
  const auto stream = cpu_backend().make_stream("compute");
  collective(*mesh.gather, *stream);
  const bool me = session.rank() == culprit;
  if (how == "place") {
    std::printf("rank %d of %d, %d of at least %d on %s\n", session.rank(), session.size(),
                session.local_rank(), session.ranks_per_node(), session.host().c_str());
  } else if (how == "all") {
    throw Error("run.yaml:3:1: no such key", ExitCode::bad_input);
  } else if (how == "each") {
    throw Error(fmt::format("shard-{}.h5: truncated", session.rank()), ExitCode::peer_lost);
  } else if (how == "one" && me) {
    throw Error("shard-7.h5: truncated", ExitCode::numeric);
  } else if (how == "one-after-the-others-are-done") {
    if (me) throw Error("metrics.jsonl: no space left", ExitCode::peer_lost);
    return 0;
  } else if (how == "code") {
    return 75;
  } else if (how == "killed" && me) {
    std::raise(SIGKILL);
  } else if (how == "hangs") {
    if (me) std::this_thread::sleep_for(std::chrono::hours(1));
    if (session.rank() == 0) throw Error("gave up", ExitCode::peer_lost);
  } else if (how == "under-way") {  // an exception passes while a collective is under way and its memory goes
    std::vector<float> numbers(1200000, 1.0F);
    const Tensor data(numbers.data(), DType::f32, {1200000});
    if (me || culprit < 0) {
      const Ticket ticket = mesh.reduce->all_reduce(*stream, data, Reduction::sum);
      throw Error("layer 3: not finite", ExitCode::numeric);
    }
  }
  if (how != "place") collective(*mesh.gather, *stream);
  return 0;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  const std::string how = argc > 1 ? argv[1] : "";
  const int culprit = argc > 2 ? std::atoi(argv[2]) : -1;
  return lapidary::run_guarded(
      argc, argv, [&](const lapidary::MpiSession& session) { return lapidary::run(session, how, culprit); });
}
