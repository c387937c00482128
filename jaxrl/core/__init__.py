"""What every layer above the contract uses: configs, storage, processes, random keys."""
