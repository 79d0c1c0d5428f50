#compdef NAME
# Completions of NAME for zsh.
_NAME() {
    local -a before values shown open
    local line value
    before=("${(@Q)words[1,CURRENT-1]}")
    for line in "${(@f)$(command ${~words[1]} complete zsh $((CURRENT - 1)) -- "${before[@]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        case $value in
            '') ;;
            */ | *@ | *=) open+=("$value") ;;
            *)
                values+=("$value")
                if [[ $line == *$'\t'* ]]; then
                    shown+=("$value  -- ${line#*$'\t'}")
                else
                    shown+=("$value")
                fi
                ;;
        esac
    done
    (( ${#values} )) && compadd -V NAME -l -d shown -a -- values
    (( ${#open} )) && compadd -V open -S '' -a -- open
    (( ${#values} + ${#open} ))
}
if [[ ${funcstack[1]} == _NAME ]]; then
    _NAME "$@"
else
    compdef _NAME NAME
fi
