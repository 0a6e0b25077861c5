echo ran > "$HOME/ran-bash-env"
