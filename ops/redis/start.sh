#!/bin/sh
# Be redis-server with the given arguments and the users of users.acl, which holds no password.
#
# In that file a line that begins with a space goes on with the rules of the user above it.
# For each user but `default` the password is taken from the secret file /run/secrets/NAME, else from
# the variable that is the name in capitals, with _ for -, and _PASSWORD behind it
# (genqueue-worker: GENQUEUE_WORKER_PASSWORD).  Redis is given its SHA-256, behind the user's rules.
# A user without a password ends the start; only genqueue-operator is left out then.
set -eu
umask 077

rules=${USERS_ACL:-/etc/redis/users.acl}
rendered=${RENDERED_ACL:-/tmp/users.acl}
secrets=${SECRETS_DIR:-/run/secrets}

# Print a user's rules with the password behind them.
write_user() {
  case $1 in
    '') return ;;
    'user default '*)
      printf '%s\n' "$1"
      return
      ;;
    'user '?*) ;;
    *)
      echo "start.sh: $rules: no user: $1" >&2
      exit 1
      ;;
  esac
  name=${1#user }
  name=${name%% *}
  variable=$(printf %s "$name" | tr 'a-z-' 'A-Z_')_PASSWORD
  case $variable in
    *[!A-Z0-9_]*)
      echo "start.sh: $rules: the user's name may have a to z, 0 to 9 and -: $name" >&2
      exit 1
      ;;
  esac
  if [ -r "$secrets/$name" ]; then
    password=$(cat "$secrets/$name")
  else
    eval "password=\${$variable:-}"
  fi
  unset "$variable"
  if [ -n "$password" ]; then
    printf '%s #%s\n' "$1" "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
  elif [ "$name" != genqueue-operator ]; then
    echo "start.sh: no password for the Redis user $name: set $variable, or give the secret $secrets/$name" >&2
    exit 1
  fi
  unset password
}

{
  user=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '' | '#'*) ;;
      ' '*) user="$user $line" ;;
      *)
        write_user "$user"
        user=$line
        ;;
    esac
  done < "$rules"
  write_user "$user"
} > "$rendered"

exec redis-server --aclfile "$rendered" "$@"
