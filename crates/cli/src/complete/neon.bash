# Completions of NAME for bash.
_NAME() {
    # Bash cuts words at = : and @, of which there are some in names and options: they are put together again.
    local line=$COMP_LINE cut at=0 word last=
    local -a words=()
    for cut in "${!COMP_WORDS[@]}"; do
        word=${COMP_WORDS[cut]}
        if [[ $cut -eq 0 || $line == [[:space:]]* ]]; then
            words+=("$word")
            line=${line#"${line%%[![:space:]]*}"}
        else
            words[${#words[@]} - 1]+=$word
        fi
        line=${line#"$word"}
        if [[ $cut -eq $COMP_CWORD ]]; then
            at=$((${#words[@]} - 1))
        fi
    done
    # What stands in quotes, and what stands for the home of who types.
    local quoted=
    for cut in "${!words[@]}"; do
        word=${words[cut]}
        case $word in
            \"*) word=${word#\"} word=${word%\"} ;;
            \'*) word=${word#\'} word=${word%\'} ;;
            '~/'*) word=$HOME${word#'~'} ;;
            *\\*) word=${word//\\/} ;;
        esac
        if [[ $cut -eq $at && ${words[cut]} == [\"\']* ]]; then
            quoted=yes
        fi
        words[cut]=$word
    done
    # What bash replaces is only what comes after the last cut.
    local typed=${2#[\"\']} before=
    typed=${typed//\\/}
    word=${words[at]}
    if [[ -z $quoted && $word == *"$typed" ]]; then
        before=${word%"$typed"}
    fi
    local program=$1
    case $program in
        '~/'*) program=$HOME${program#'~'} ;;
    esac
    COMPREPLY=()
    while IFS= read -r word; do
        last=$word
        word=${word#"$before"}
        if [[ -z $quoted && $word == *[[:space:]\"\'\\\$\`\&\;\|\<\>\(\)\*\?\[\]]* ]]; then
            printf -v word %q "$word"
        fi
        COMPREPLY+=("$word")
    done < <("$program" complete bash "$at" -- "${words[@]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && $last == *[/@=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _NAME NAME
