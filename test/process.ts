export * from './support/process.ts'
