/** Every number in layouts.ts against the C compiler's, from the headers that layouts.ts itself names. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { epollEvent, headers, layouts } from '../../src/sys/layouts.ts'
import { has } from '../support/process.ts'

const source = readFileSync(new URL('../../src/sys/layouts.ts', import.meta.url), 'utf8')
const named = new Set(source.match(/<[\w/]+\.h>/g))
const structs = { ...layouts, epoll_event: epollEvent(process.arch) }

/** What to ask of C, in C, and our answer. */
const ours: Record<string, number> = {
  ...headers,
  ...Object.fromEntries(
    Object.entries(structs).flatMap(([struct, { size, at }]) => [
      [`sizeof(struct ${struct})`, size],
      ...Object.entries(at).map(([member, offset]) => [`offsetof(struct ${struct}, ${member})`, offset]),
    ]),
  ),
}

/** `tcpHeader`: <linux/tcp.h> is the kernel's, <netinet/tcp.h> the C library's; both at once collide. */
function theirs(t: TestContext, compiler: string, tcpHeader: string): Record<string, number> {
  const folder = mkdtempSync(join(tmpdir(), 'roundelay-layouts-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const includes = [...named].filter(name => !name.endsWith('/tcp.h>'))
  const lines = Object.keys(ours).map(question => `  tell("${question}", (long) (${question}));`)
  const program = [
    '#define _GNU_SOURCE',
    ...['<stdio.h>', '<stddef.h>', ...includes, tcpHeader].map(name => `#include ${name}`),
    'static const char *between = "{";',
    'static void tell(const char *question, long answer) {',
    '  printf("%s\\n\\"%s\\": %ld", between, question, answer);',
    '  between = ",";',
    '}',
    'int main(void) {',
    ...lines,
    '  puts("}");',
    '}',
  ]
  const binary = join(folder, 'layouts')
  execFileSync(compiler, ['-x', 'c', '-Wall', '-Werror', '-o', binary, '-'], { input: program.join('\n') })
  return JSON.parse(execFileSync(binary, { encoding: 'utf8' }))
}

const wrongPlatform = process.platform !== 'linux' && 'not Linux'
for (const [compiler, tcpHeader] of [
  ['cc', '<netinet/tcp.h>'],
  ['cc', '<linux/tcp.h>'],
  ['musl-gcc', '<netinet/tcp.h>'],
])
  test(`constants, sizes and offsets are those of ${compiler} with ${tcpHeader}`, {
    skip: wrongPlatform || (!has(compiler!) && `no ${compiler}`),
  }, t => {
    const answers = theirs(t, compiler!, tcpHeader!)
    // It grows with the kernel, so ours is a beginning of it.
    const tcpInfo = 'sizeof(struct tcp_info)'
    assert.ok(ours[tcpInfo]! <= answers[tcpInfo]!)
    assert.deepEqual(answers, { ...ours, [tcpInfo]: answers[tcpInfo] })
  })

test('epoll_event is packed on x64 and on no other architecture', () => {
  const { events, data } = epollEvent('arm64').at
  assert.deepEqual([epollEvent('arm64').size, events, data], [16, 0, 8])
  assert.deepEqual([epollEvent('x64').size, ...Object.values(epollEvent('x64').at)], [12, 0, 4])
})

test('each layout says where it is described, and its members are in it, aligned and in order', () => {
  for (const [struct, { source, size, at }] of Object.entries(structs)) {
    assert.match(source, /^\w+\(\d\), <[\w/]+\.h>/, struct)
    const offsets = Object.values<number>(at)
    assert.deepEqual(
      offsets,
      [...new Set(offsets)].sort((a, b) => a - b),
      struct,
    )
    for (const offset of offsets) assert.ok(offset < size, struct)
  }
})
