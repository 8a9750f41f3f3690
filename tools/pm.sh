#!/usr/bin/env bash
# pm.sh : the rows of the post-mortem with their checks and sabotages; as JSON where JSON is set.
set -euo pipefail
# shellcheck source=say.sh
. "$(dirname "$0")/say.sh"

environment=$("$checkout/tools/environment.sh" dev)
cd "$checkout"
exec "$environment/bin/python" -P tools/pm.py ${JSON:+--json}
