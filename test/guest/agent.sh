# Runs what the host sends: one command per line, base64. Answers with the command's output and a
# line that holds its exit code.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run LC_ALL=C
cd /run
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo '@@ready' >&3
while IFS= read -r line <&3; do
  printf '%s' "$line" | base64 -d >/run/command
  sh /run/command >/run/output 2>&1 </dev/null 3<&-
  code=$?
  base64 -w 0 /run/output >&3
  printf '\n@@done %s\n' "$code" >&3
done
