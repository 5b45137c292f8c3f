check_includes: 3 include3 against the rules
