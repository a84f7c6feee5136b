/**
 * Ends an npm script with one line where Node is too old: on a platform for which tools/node has no package, `node` is
 * the one of the machine. Any Node since 12 must be able to run this file.
 */
'use strict'
const { optionalDependencies } = require('./node/package.json')

const needed = Math.min(...Object.values(optionalDependencies).map(version => parseInt(version, 10)))
if (parseInt(process.versions.node, 10) < needed) {
  const platforms = Object.keys(optionalDependencies).map(name => name.replace(/^node-(bin-)?/, ''))
  console.error(
    `roundelay: Node ${needed} is needed, and this is ${process.versions.node} on ${process.platform}-${process.arch}; ` +
      `npm ci installs it on ${platforms.join(', ')}; elsewhere install it yourself`,
  )
  process.exit(1)
}
