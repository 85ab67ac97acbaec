"""Shell completion: verbs, experiments, groups with their members, and settings."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_lightning.errors import ConfigError

SCRIPTS = {
    "bash": """\
_rlvr_lightning() {
    local IFS=$'\\n'
    COMPREPLY=($(rlvr-lightning completion query "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY-} == *= ]] && compopt -o nospace
}
# `=` belongs to a word: settings are written key=value.
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _rlvr_lightning rlvr-lightning
""",
    "zsh": """\
#compdef rlvr-lightning
_rlvr_lightning() {
    local -a found
    found=(${(f)"$(rlvr-lightning completion query "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)"})
    compadd -S '' -- $found
}
compdef _rlvr_lightning rlvr-lightning
""",
    "fish": """\
complete -c rlvr-lightning -f -a '(rlvr-lightning completion query (commandline -opc)[2..-1] (commandline -ct))'
""",
}


def completion(arguments: Sequence[str]) -> str:
    """The script of a shell, or (`query`) the words that may stand in the last place, one a line.

    Raises:
        ConfigError: no shell is named, or an unknown one.
    """
    if arguments and arguments[0] == "query":
        return "".join(f"{word}\n" for word in candidates(arguments[1:]))
    if not arguments or arguments[0] not in SCRIPTS:
        raise ConfigError(f"completion needs a shell: {', '.join(SCRIPTS)}; e.g. rlvr-lightning completion bash")
    return SCRIPTS[arguments[0]]


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` can become.

    Args:
        words: after the program's name; the last is being typed and may be empty.
    """
    from rlvr_lightning.cli.verbs import VERBS
    from rlvr_lightning.config.compose import compose, config_dir, leaf_keys

    typed = words[-1] if words else ""
    if len(words) <= 1:
        return [verb for verb in sorted([*VERBS, "compare", "completion"]) if verb.startswith(typed)]
    groups = {folder.name: folder for folder in config_dir().iterdir() if folder.is_dir()}
    members = {
        "conf" if name == "experiment" else name: sorted(file.stem for file in folder.glob("*.yaml"))
        for name, folder in groups.items()
    }
    key, equals, value = typed.partition("=")
    if equals and key in members:
        return [f"{key}={member}" for member in members[key] if member.startswith(value)]
    chosen = [word for word in words[1:-1] if word.startswith("conf=")]
    settings = [name for name in leaf_keys(compose(chosen)) if not name.startswith("hydra")]
    return sorted({f"{name}=" for name in [*members, *settings] if f"{name}=".startswith(typed)})
