"""The deciding part: columns, twin table, rules. Pure: values and `now` in, values and actions out."""
