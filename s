check_includes: 1 include1 against the rules
