/**
 * Ends an npm script with one line where Node is too old. On a platform for which tools/node has no package, `node`
 * is that of the machine. Any Node since 12 must be able to run this file.
 */
'use strict'
const { optionalDependencies } = require('./node/package.json')

const needed = Math.min(...Object.values(optionalDependencies).map(version => parseInt(version, 10)))
if (parseInt(process.versions.node, 10) < needed) {
  const platforms = Object.keys(optionalDependencies).map(name =>
    name.replace(/^node-(bin-)?/, '').replace(/^linux-.*/, '$& (glibc)'),
  )
  const here = `${process.versions.node} on ${process.platform}-${process.arch}`
  const cure = `npm ci installs it on ${platforms.join(', ')}; elsewhere install it yourself`
  console.error(`roundelay: Node ${needed} is needed, and this is ${here}; ${cure}`)
  process.exit(1)
}
