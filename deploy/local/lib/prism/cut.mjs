// Cuts GitHub's description down to the paths that the gateway's client uses, word for word: the whole one takes the
// server a quarter of a minute to read.
import { readFileSync, writeFileSync } from "node:fs";

const PATHS = [
  "/repos/{owner}/{repo}",
  "/repos/{owner}/{repo}/pulls",
  "/repos/{owner}/{repo}/issues/{issue_number}",
];

const [, , from, to] = process.argv;
const description = JSON.parse(readFileSync(from, "utf8"));
const paths = Object.fromEntries(PATHS.map((path) => [path, description.paths[path]]));
for (const [path, operations] of Object.entries(paths)) {
  if (!operations) throw new Error(`${from} describes no ${path}`);
}
const { openapi, info } = description;
writeFileSync(to, JSON.stringify({ openapi, info, paths }));
