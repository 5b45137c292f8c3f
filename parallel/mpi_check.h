// The one place where MPI's return codes become Errors, and the note that this process has given up on a
// collective, after which it must not enter MPI again except to abort.
#pragma once
#include <mpi.h>

#include <string>

namespace lapidary {

/// Throws Error with ExitCode::peer_lost unless `code` is MPI_SUCCESS: "all_gather on communicator 'gather':
/// MPI_ERR_TRUNCATE: message truncated". The communicator must have MPI_ERRORS_RETURN.
void mpi_check(int code, const char* operation, const std::string& communicator);

/// A collective was left behind unfinished because its peers did not come: MPI may still write to its
/// buffers, which are gone. run_guarded then ends the job without another MPI call than MPI_Abort.
void abandon_communication();
bool communication_abandoned();

}  // namespace lapidary
