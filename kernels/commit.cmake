# cmake -D SOURCE=... -D HEADER=... -P commit.cmake: writes HEADER from commit.h.in where the commit of the tree SOURCE is
# not what it says already.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty
                OUTPUT_VARIABLE LAPIDARY_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
configure_file(${CMAKE_CURRENT_LIST_DIR}/commit.h.in ${HEADER} @ONLY)
