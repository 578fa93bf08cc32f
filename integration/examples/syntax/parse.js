// Parses the examples that nothing here can compile, and says where that fails: node parse.js <grammar> <file> …
import {readFileSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import {Language, Parser} from 'web-tree-sitter';

const [grammar, ...files] = process.argv.slice(2);
await Parser.init();
const parser = new Parser();
const wasm = new URL(`node_modules/@repomix/tree-sitter-wasms/out/tree-sitter-${grammar}.wasm`, import.meta.url);
parser.setLanguage(await Language.load(fileURLToPath(wasm)));

function report(file, node) {
  if (node.isError || node.isMissing) {
    console.log(`${file}:${node.startPosition.row + 1}: not ${grammar}`);
    process.exitCode = 1;
  }
  for (const child of node.children) report(file, child);
}

for (const file of files) report(file, parser.parse(readFileSync(file, 'utf8')).rootNode);
