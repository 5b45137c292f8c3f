#!/usr/bin/env bash
# mpirun.sh RANKS PROGRAM [ARGS...]: starts the program as the tests need it: as root in a container, more ranks
# than cores, one compute thread a rank, no binding, loopback only.
set -euo pipefail
ranks=$1
shift
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
# Open MPI leaves memory behind when it ends; leaks of ours show in the tests of one process.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# hwloc complains on stderr where /sys is not mounted, as in some containers; tests compare what is printed.
export HWLOC_HIDE_ERRORS=${HWLOC_HIDE_ERRORS:-2}
exec mpirun --oversubscribe --bind-to none --mca btl self,vader --mca btl_vader_single_copy_mechanism none \
  --mca mpi_yield_when_idle 1 -n "$ranks" "$@"
