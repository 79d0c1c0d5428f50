# Completions of NAME for fish.
function __NAME_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l typed (commandline --current-token --cut-at-cursor)
    set -l program (string replace --regex '^~/' "$HOME/" -- $words[1])
    command $program complete fish (count $words) -- $words "$typed" 2>/dev/null
end
complete --command NAME --no-files --keep-order --arguments '(__NAME_complete)'
