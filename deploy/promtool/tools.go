//go:build tools

// promtool, pinned: tests/integration/telemetry/test_alerts.py builds it from here.
package tools

import _ "github.com/prometheus/prometheus/cmd/promtool"
