#!/usr/bin/env node
/**
 * The command of the published package. Any Node since 12 must be able to parse this file, so that a Node that is
 * too old can report it. Newer syntax belongs in the files that it loads.
 */
'use strict'

const NEEDED = 26

if (parseInt(process.versions.node, 10) < NEEDED) {
  const here = `${process.versions.node} (${process.execPath})`
  console.error(`roundelay: Node ${NEEDED} or later is needed, and this is ${here}`)
  process.exitCode = 1
} else if (require('node:fs').existsSync(require('node:path').join(__dirname, '../dist/cli.js'))) {
  import('../dist/cli.js')
} else {
  // `npm link` in a checkout, where nothing is compiled.
  import('../src/cli.ts')
}
