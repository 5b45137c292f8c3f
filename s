check_includes: 2 include2 against the rules
